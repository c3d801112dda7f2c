//! Waits: they end when what is waited for is there, and at once when it can no longer come. In threads, on tokio, on smol.

use std::sync::Arc;
use std::time::Duration;

use topiclog::client::OffsetAndMetadata;
use topiclog::group::Groups;
use topiclog::io::{Fault, FaultPlan, FaultVfs, MemoryVfs, OpKind, SyncFailure, errno};
use topiclog::{
    AppendOptions, Durability, Error, PartitionPosition, Position, Record, Store, Topic, TopicConfig, Upkeep,
};

const HOUR: Duration = Duration::from_secs(3600);

fn store() -> Store {
    Store::builder().vfs(Arc::new(MemoryVfs::new())).upkeep(Upkeep::Manual).open("/s").unwrap()
}

fn topic(store: &Store) -> Topic {
    store.create_topic("t", TopicConfig::default()).unwrap()
}

fn at(topic: &Topic, next_offset: i64) -> Position {
    Position::of(topic.partition(0).unwrap().id().clone(), PartitionPosition::new(next_offset).topic_id(topic.id()))
}

/// What is waited for.
#[derive(Clone, Copy, Debug)]
enum What {
    Readable,
    Durable,
    Group,
}

const ALL: [What; 3] = [What::Readable, What::Durable, What::Group];

fn wait(store: &Store, what: What, position: &Position, timeout: Duration) -> Result<(), Error> {
    match what {
        What::Readable => store.wait_readable(position, timeout),
        What::Durable => store.wait_durable(position, timeout),
        What::Group => Groups::open(store)?.wait_for("g", position, timeout),
    }
}

fn fulfil(store: &Store, topic: &Topic) {
    topic.append(Record::of_value("a")).unwrap();
    let next = [(topic.partition(0).unwrap().id().clone(), OffsetAndMetadata::new(1))];
    Groups::open(store).unwrap().commit("g", &next).unwrap();
}

#[test]
fn a_wait_ends_when_what_it_waits_for_is_there() {
    for what in ALL {
        let store = store();
        let topic = topic(&store);
        let position = at(&topic, 1);
        let early = wait(&store, what, &position, Duration::from_millis(5));
        assert!(matches!(early, Err(Error::Timeout { .. })), "{what:?}: {early:?}");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(&store, what, &position, HOUR));
            fulfil(&store, &topic);
            waiting.join().unwrap().unwrap();
        });
        wait(&store, what, &position, Duration::ZERO).unwrap();
        wait(&store, what, &Position::new(), Duration::ZERO).unwrap();
    }
}

#[test]
fn a_wait_ends_at_once_with_its_store_its_topic_and_its_log() {
    for what in ALL {
        for ends in ["close", "delete", "made again"] {
            let store = store();
            let topic = topic(&store);
            let position = at(&topic, 1);
            let ended = std::thread::scope(|scope| {
                let waiting = scope.spawn(|| wait(&store, what, &position, HOUR));
                match ends {
                    "close" => store.close().unwrap(),
                    _ => store.delete_topic("t").unwrap(),
                }
                if ends == "made again" {
                    store.create_topic("t", TopicConfig::default()).unwrap();
                }
                waiting.join().unwrap()
            });
            match (ends, &ended) {
                ("close", Err(Error::Closed { .. })) | ("delete", Err(Error::UnknownTopic { .. })) => {}
                // It may have looked while there was none.
                ("made again", Err(Error::PositionLost { .. } | Error::UnknownTopic { .. })) => {}
                _ => panic!("{what:?}, {ends}: {ended:?}"),
            }
        }
    }
}

#[test]
fn a_wait_ends_when_the_log_can_no_longer_get_there() {
    let vfs = FaultVfs::new();
    let store = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).open("/s").unwrap();
    let topic = topic(&store);
    let options = AppendOptions::new().durability(Durability::Os);
    let position = topic.append_with(Record::of_value("a"), &options).unwrap().position();
    std::thread::scope(|scope| {
        let waiting = ALL.map(|what| {
            scope.spawn({
                let (store, position) = (&store, &position);
                move || wait(store, what, position, HOUR)
            })
        });
        vfs.inject(failed_sync());
        assert!(topic.flush().is_err());
        for (what, waiting) in ALL.into_iter().zip(waiting) {
            let ended = waiting.join().unwrap();
            assert!(matches!(ended, Err(Error::Poisoned { .. })), "{what:?}: {ended:?}");
        }
    });
}

fn failed_sync() -> FaultPlan {
    FaultPlan::new(Fault::Sync(errno::EIO, SyncFailure::LostAtDrop)).on(OpKind::SyncData).in_class("log")
}

#[test]
fn a_wait_for_a_group_ends_when_it_can_no_longer_commit() {
    let vfs = FaultVfs::new();
    let store = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).open("/s").unwrap();
    let topic = topic(&store);
    topic.append(Record::of_value("a")).unwrap();
    let position = topic.append(Record::of_value("b")).unwrap().position();
    let groups = Groups::open(&store).unwrap();
    let next = |offset| [(topic.partition(0).unwrap().id().clone(), OffsetAndMetadata::new(offset))];
    groups.commit("g", &next(1)).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(&store, What::Group, &position, HOUR));
        vfs.inject(failed_sync());
        assert!(groups.commit("g", &next(2)).is_err());
        let ended = waiting.join().unwrap();
        assert!(matches!(ended, Err(Error::Poisoned { .. })), "{ended:?}");
    });
}

/// After a power cut the offsets are handed out again, to other records.
#[test]
fn a_position_that_a_crash_took_back_is_lost_and_not_waited_for() {
    let vfs = FaultVfs::new();
    let open = |vfs: &FaultVfs| Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).open("/s").unwrap();
    let store = open(&vfs);
    let topic = topic(&store);
    topic.append(Record::of_value("kept")).unwrap();
    let options = AppendOptions::new().durability(Durability::Os);
    let kept = at(&topic, 1);
    let taken_back = topic.append_with(Record::of_value("lost"), &options).unwrap().position();
    store.wait_durable(&kept, Duration::ZERO).unwrap();
    let store = open(&FaultVfs::from_image(&vfs.durable_image()));
    let topic = store.topic("t").unwrap();
    assert_eq!(topic.append(Record::of_value("other")).unwrap().offset.get(), 1, "the offset is given again");
    let partition = topic.partition(0).unwrap();
    let lost = partition.check_position(taken_back.get(partition.id()).unwrap());
    assert!(matches!(lost, Err(Error::PositionLost { .. })), "{lost:?}");
    for what in ALL {
        let ended = wait(&store, what, &taken_back, HOUR);
        assert!(matches!(ended, Err(Error::PositionLost { .. })), "{what:?}: {ended:?}");
    }
    store.wait_durable(&kept, Duration::ZERO).unwrap();
    let mut consumer = topiclog::Consumer::builder(&store).start_at(&kept).open().unwrap();
    assert_eq!(consumer.poll(Duration::ZERO).unwrap().first().unwrap().record.value(), Some(&b"other"[..]));
    let refused = consumer.seek_to(&taken_back);
    assert!(matches!(refused, Err(Error::PositionLost { .. })), "{refused:?}");
}

#[cfg(feature = "async")]
mod futures {
    use super::*;

    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use futures_core::Stream;
    use topiclog::Consumer;
    use topiclog::client::ConsumerStream;

    /// Runs one program on each runtime, on its own threads.
    fn on_both(name: &str, program: impl Fn() -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        tokio.block_on(async { tokio::spawn(program()).await.unwrap_or_else(|error| panic!("{name}: {error}")) });
        let smol = async_executor::Executor::new();
        futures_lite::future::block_on(smol.run(smol.spawn(program())));
    }

    async fn wait(store: &Store, what: What, position: &Position) -> Result<(), Error> {
        match what {
            What::Readable => store.wait_readable_async(position).await,
            What::Durable => store.wait_durable_async(position).await,
            What::Group => Groups::open(store)?.wait_for_async("g", position).await,
        }
    }

    #[test]
    fn a_future_ends_when_what_it_waits_for_is_there() {
        for what in ALL {
            on_both("wait", move || {
                Box::pin(async move {
                    let store = store();
                    let topic = topic(&store);
                    let position = at(&topic, 1);
                    let (other, of_other) = (store.clone(), topic.clone());
                    let thread = std::thread::spawn(move || fulfil(&other, &of_other));
                    wait(&store, what, &position).await.unwrap();
                    thread.join().unwrap();
                    wait(&store, what, &position).await.unwrap();
                    let later = at(&topic, 9);
                    let thread = std::thread::spawn(move || store.close().map(|()| store));
                    let store = thread.join().unwrap().unwrap();
                    let ended = wait(&store, what, &later).await;
                    assert!(matches!(ended, Err(Error::Closed { .. })), "{what:?}: {ended:?}");
                })
            });
        }
    }

    async fn next(stream: &mut ConsumerStream) -> Option<Result<topiclog::client::ConsumedRecord, Error>> {
        std::future::poll_fn(|context| pin!(&mut *stream).poll_next(context)).await
    }

    #[test]
    fn a_consumer_is_a_stream_on_any_runtime() {
        on_both("stream", || {
            Box::pin(async {
                let store = store();
                let topic = topic(&store);
                let mut stream = Consumer::join(&store, "g", ["t"]).unwrap().into_stream();
                let appender = std::thread::spawn(move || {
                    (0..1000).for_each(|_| drop(topic.append(Record::of_value("x")).unwrap()));
                });
                for expected in 0..1000 {
                    assert_eq!(next(&mut stream).await.unwrap().unwrap().record.offset().get(), expected);
                    if expected == 700 {
                        stream.commit().unwrap();
                    }
                }
                appender.join().unwrap();
                let committed = Groups::open(&store).unwrap().offsets("g").unwrap();
                assert_eq!(committed[0].1.offset, 701, "what was handed out, and nothing that waits in the stream");
                let closing = store.clone();
                let thread = std::thread::spawn(move || closing.close().unwrap());
                assert!(matches!(next(&mut stream).await, Some(Err(Error::Closed { .. }))));
                thread.join().unwrap();
            })
        });
    }

    /// Members wait without a timer: upkeep wakes them, so that one that has nothing to read stays a member.
    #[test]
    fn a_stream_without_news_is_woken_by_upkeep() {
        let store = store();
        topic(&store);
        let mut stream = pin!(Consumer::join(&store, "g", ["t"]).unwrap().into_stream());
        let woken = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&woken));
        assert!(stream.as_mut().poll_next(&mut Context::from_waker(&waker)).is_pending());
        let before = woken.0.load(std::sync::atomic::Ordering::SeqCst);
        store.tick().unwrap();
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::SeqCst), before + 1);
        assert!(matches!(stream.poll_next(&mut Context::from_waker(&waker)), Poll::Pending));
    }

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
}
