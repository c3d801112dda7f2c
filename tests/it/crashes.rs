//! Every disk that a crash could leave holds what was promised: sweeps over scripts, crashes, second crashes and faults.

use std::collections::BTreeSet;
use std::time::Instant;

use topiclog::io::{Fault, FaultPlan, FaultVfs, OpKind, Sites, SyncFailure, errno};

use crate::support::ops::{ALPHABET, Flavour, Op, Runner};
use crate::support::oracle::{Claim, Model};
use crate::support::simulate::{Base, Random, Sweep, crash_recovery, crash_script, profile, seed, survives, verify};

/// Scripts of three steps, a quarter of all that there are.
const OF_THREE: usize = 432;

/// All scripts of one and two steps, a part of those of three, and longer ones without end.
fn scripts(random: &mut Random) -> impl Iterator<Item = Vec<Op>> {
    let one = ALPHABET.iter().map(|op| vec![*op]);
    let two = ALPHABET.iter().flat_map(|first| ALPHABET.iter().map(|second| vec![*first, *second]));
    let mut three: Vec<usize> = (0..12 * 12 * 12).collect();
    (0..OF_THREE).for_each(|at| three.swap(at, at + random.below(1728 - at)));
    three.truncate(OF_THREE);
    let three = three.into_iter().map(|n| [n / 144, n / 12 % 12, n % 12].map(|op| ALPHABET[op]).to_vec());
    let longer = std::iter::repeat_with(|| (0..8).map(|_| ALPHABET[random.below(12)]).collect());
    one.chain(two).chain(three).chain(longer)
}

pub(crate) fn model_sweep(runs: u64) -> Sweep {
    let mut sweep = Sweep::new("model", runs);
    let mut random = Random(seed("model", 1));
    while !sweep.is_over() {
        let flavour = Flavour::ALL[random.below(3)];
        let ops: Vec<Op> = (0..1 + random.below(40)).map(|_| ALPHABET[random.below(12)]).collect();
        let what = format!("{flavour:?} {ops:?}");
        sweep.count += 1;
        sweep.guard(&what, || {
            let mut runner = Runner::new(&topiclog::io::Image::new(), &Model::default(), flavour, 0);
            for op in &ops {
                runner.apply(*op);
                if let Some(problem) = runner.problems.first() {
                    return Err(problem.clone());
                }
                if runner.store.is_none() {
                    return Err("the store does not open".into());
                }
            }
            Ok(())
        });
    }
    sweep
}

pub(crate) fn crash_sweep(states: u64) -> Sweep {
    let mut sweep = Sweep::new("crash states", states);
    let bases = Base::all();
    let mut counts = [0_u64; 4];
    for ops in scripts(&mut Random(seed("crash states", 1))) {
        if sweep.is_over() {
            break;
        }
        for base in &bases {
            crash_script(&mut sweep, base, &ops);
        }
        counts[ops.len().min(4) - 1] += 1;
    }
    tell!("scripts of one, two, three and more steps: {counts:?}");
    assert!(states < 250_000 || counts[..3] == [12, 144, OF_THREE as u64], "all of them are run: {counts:?}");
    sweep
}

pub(crate) fn recovery_sweep(states: u64) -> Sweep {
    let mut sweep = Sweep::new("crash inside recovery", states);
    let bases = Base::all();
    let mut random = Random(seed("crash inside recovery", 2));
    for round in 0..3000_u64 {
        let base = &bases[random.below(bases.len())];
        let ops: Vec<Op> = (0..1 + random.below(4)).map(|_| ALPHABET[random.below(12)]).collect();
        let mut runner = base.runner();
        ops.iter().for_each(|op| runner.apply(*op));
        let states: Vec<_> = runner.disk.crash_states(&profile(round)).collect();
        for _ in 0..2 {
            let state = &states[random.below(states.len())];
            let what = format!("{:?} {ops:?} {state}", base.flavour);
            crash_recovery(&mut sweep, &what, &state.image, &runner.model, survives(state.rule));
        }
        if sweep.is_over() {
            break;
        }
    }
    sweep
}

const ERRORS: [i32; 4] = [errno::EIO, errno::ENOSPC, errno::EMFILE, errno::EACCES];

fn faults() -> Vec<Fault> {
    let mut faults: Vec<Fault> = ERRORS.into_iter().map(Fault::Error).collect();
    faults.extend([Fault::Short(0), Fault::Short(1), Fault::Short(40)]);
    faults.extend(
        [SyncFailure::LostAtDrop, SyncFailure::Reverted, SyncFailure::OpenHandles]
            .map(|mode| Fault::Sync(errno::EIO, mode)),
    );
    faults
}

fn merge(all: &mut Sites, more: Sites) {
    for (site, count) in more {
        let into = all.entry(site).or_default();
        into.calls += count.calls;
        for (number, times) in count.errors {
            *into.errors.entry(number).or_default() += times;
        }
    }
}

fn with_faults(
    base: &Base,
    ops: &[Op],
    plans: Vec<FaultPlan>,
    is_sync: bool,
    deep: bool,
) -> Result<(Sites, bool), String> {
    let mut runner = base.runner();
    plans.into_iter().for_each(|plan| runner.disk.inject(plan));
    ops.iter().for_each(|op| runner.apply(*op));
    let hit = runner.disk.faults_hit() > 0;
    runner.disk.clear_faults();
    let sites = runner.disk.sites_seen();
    if let Some(problem) = runner.problems.first() {
        return Err(problem.clone());
    }
    runner.store = None;
    runner.disk.kill();
    let lossy = runner.is_lossy || is_sync;
    if is_sync {
        runner.disk.drop_caches();
    }
    // What the process had done by then must survive a kill, and what was synced a power cut.
    let visible = if lossy { Claim::Synced } else { Claim::Acked };
    verify(&runner.disk.image(), &runner.model, visible, deep).map_err(|e| format!("killed: {e}"))?;
    let durable = runner.disk.durable_image();
    verify(&durable, &runner.model, Claim::Synced, false).map_err(|e| format!("power cut: {e}"))?;
    Ok((sites, hit))
}

/// A script on a base.
struct Run<'a> {
    ops: &'a [Op],
    base: &'a Base,
}

impl Run<'_> {
    /// Runs it with one fault; the sites that it met are added. Whether the fault was met, or `None` if something is wrong.
    fn once(&self, sweep: &mut Sweep, all: &mut Sites, fault: Fault, at: &str, plans: Vec<FaultPlan>) -> Option<bool> {
        let Self { ops, base } = self;
        let what = format!("{:?} {ops:?} {fault:?} at {at}", base.flavour);
        let (is_sync, deep) = (matches!(fault, Fault::Sync(..)), sweep.count.is_multiple_of(4));
        let done = sweep.guard(&what, || with_faults(base, ops, plans, is_sync, deep));
        sweep.count += 1;
        done.map(|(sites, hit)| {
            merge(all, sites);
            hit
        })
    }

    /// Every error at every kind of call on every class of files that this run has.
    fn each_site(&self, sweep: &mut Sweep, all: &mut Sites) {
        let mut runner = self.base.runner();
        self.ops.iter().for_each(|op| runner.apply(*op));
        runner.problems.iter().for_each(|problem| sweep.fail(format!("{:?} {problem}", self.ops)));
        for ((op, class), count) in runner.disk.sites_seen() {
            for (nth, number) in ERRORS.into_iter().enumerate() {
                if sweep.is_over() {
                    return;
                }
                // Some other call of those each time, once and for good by turns.
                let call = 1 + (sweep.count * 7 + nth as u64) % count.calls;
                let plan = FaultPlan::new(Fault::Error(number)).on(op).in_class(&*class).at_call(call);
                let sticky = (sweep.count + nth as u64).is_multiple_of(2);
                let at = format!("{call} of {op:?} {class}, sticky {sticky}");
                let mut plans = vec![if sticky { plan.sticky() } else { plan }];
                if class.ends_with(".tmp") && op != OpKind::RemoveFile {
                    // A half-written temporary is removed again; that fails as well.
                    plans.push(FaultPlan::new(Fault::Error(number)).on(OpKind::RemoveFile).in_class(&*class));
                }
                self.once(sweep, all, Fault::Error(number), &at, plans);
            }
        }
    }

    /// Each fault at one call after the other, whatever it is, in steps.
    fn each_call(&self, sweep: &mut Sweep, all: &mut Sites, step: u64) {
        let cases = faults().into_iter().flat_map(|fault| [(fault, false), (fault, true)]);
        for (nth, (fault, sticky)) in (0..).zip(cases) {
            for call in (1 + nth % step..).step_by(step as usize) {
                if sweep.is_over() {
                    return;
                }
                let plan = FaultPlan::new(fault).at_call(call);
                let at = format!("{call}, sticky {sticky}");
                if self.once(sweep, all, fault, &at, vec![if sticky { plan.sticky() } else { plan }]) == Some(false) {
                    break;
                }
            }
        }
    }
}

pub(crate) fn fault_sweep(injections: u64, all: &mut Sites) -> Sweep {
    use Op::*;
    let mut sweep = Sweep::new("faults", injections);
    let scripts: [&[Op]; 8] = [
        &[Small, Batch, Large, Other, Flush, Large, Tick, Reopen, Small],
        &[Create, Small, Small, Alter, Read, Delete, Create, Reopen],
        &[Large, Kill, Small, Kill, Batch, Large, Kill],
        &[Other, Large, Large, Tick, Tick, Flush, Small, Kill, Read],
        &[Batch, Batch, Small, Small, Small, Tick, Reopen, Reopen],
        &[Kill, Delete, Small, Flush, Reopen, Create, Batch],
        &[Small, Large, KillWatched, Small, Other, KillWatched, Reopen],
        &[Create, Large, Batch, Large, Batch, Large, Delete, Create],
    ];
    let mut bases = Base::all();
    bases.push(Base::torn());
    let runs: Vec<Run<'_>> = scripts.iter().flat_map(|ops| bases.iter().map(|base| Run { ops, base })).collect();
    runs.iter().for_each(|run| run.each_site(&mut sweep, all));
    runs.iter().for_each(|run| run.each_call(&mut sweep, all, 11));
    sweep
}

#[test]
fn what_one_open_and_verify_costs_is_printed() {
    for base in Base::all() {
        let mut runner = base.runner();
        [Op::Small, Op::Batch, Op::Large].iter().for_each(|op| runner.apply(*op));
        let image = runner.disk.image();
        let started = Instant::now();
        (0..300).for_each(|_| drop(FaultVfs::from_image(&image)));
        let disk = started.elapsed().as_micros() / 300;
        let started = Instant::now();
        for _ in 0..300 {
            verify(&image, &runner.model, Claim::Acked, false).unwrap();
        }
        tell!(
            "open + verify ({:?}): {} us, of it the disk {disk} us",
            base.flavour,
            started.elapsed().as_micros() / 300
        );
    }
}

#[test]
fn a_store_does_what_the_oracle_says() {
    model_sweep(20_000).finish(20_000);
}

#[test]
fn every_crash_leaves_what_was_promised() {
    crash_sweep(250_000).finish(250_000);
}

#[test]
fn a_crash_inside_recovery_changes_nothing() {
    recovery_sweep(20_000).finish(20_000);
}

#[test]
fn one_fault_at_every_call() {
    let mut sites = Sites::new();
    let sweep = fault_sweep(45_000, &mut sites);
    let is_known = |number: &i32| ERRORS.contains(number);
    let met = |count: &topiclog::io::SiteCount| count.errors.keys().filter(|number| is_known(number)).count() >= 3;
    let missed: BTreeSet<String> =
        sites.iter().filter(|(_, count)| !met(count)).map(|(site, _)| format!("{site:?}")).collect();
    tell!("sites: {}, with three errors {}, missed {missed:?}", sites.len(), sites.len() - missed.len());
    sweep.finish(30_000);
    assert!(missed.is_empty() && sites.len() >= 100, "{} of {} sites: {missed:?}", missed.len(), sites.len());
}
