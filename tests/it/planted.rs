//! Bugs on purpose: each is switched on in turn, and some sweep has to find it.
//!
//! `RUSTFLAGS="--cfg topiclog_planted" cargo test --all-features --test it planted::` runs it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use topiclog::planted::{Bug, plant};

/// The sweeps, at small budgets, cheapest first.
fn sweeps() -> [(&'static str, fn()); 8] {
    [
        ("regressions", crate::regressions::all),
        ("durability", crate::durability::all),
        ("one writer", crate::processes::a_second_writer_is_refused_in_this_process_and_in_another),
        ("byte flips", crate::damage::no_changed_byte_is_passed_over_in_silence),
        ("lengths", crate::damage::no_other_length_is_passed_over_in_silence),
        ("crash states", || crate::crashes::crash_sweep(12_000).finish(0)),
        ("crash inside recovery", || crate::crashes::recovery_sweep(3_000).finish(0)),
        ("faults", || {
            let mut sites = topiclog::io::Sites::new();
            crate::crashes::fault_sweep(6_000, &mut sites).finish(0);
        }),
    ]
}

#[test]
fn every_planted_bug_is_found() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        let started = Instant::now();
        plant(Some(bug));
        let found = sweeps().into_iter().find(|(_, sweep)| catch_unwind(AssertUnwindSafe(sweep)).is_err());
        plant(None);
        match found {
            Some((name, _)) => tell!("planted {bug:?}: found by {name}, {:.1} s", started.elapsed().as_secs_f64()),
            None => missed.push(bug),
        }
    }
    drop(std::panic::take_hook());
    tell!("planted bugs: {} of {} found, missed {missed:?}", Bug::ALL.len() - missed.len(), Bug::ALL.len());
    // Without the floor, or without a look at where an index leads, the damage is still told of: by a cut that is reported,
    // and by an error where the entries could have been made anew.
    let known = [Bug::FloorIgnored, Bug::IndexTrusted];
    let missed: Vec<Bug> = missed.into_iter().filter(|bug| !known.contains(bug)).collect();
    assert_eq!(missed, [], "these must be found");
}
