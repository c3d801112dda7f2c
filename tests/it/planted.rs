//! Bugs on purpose: each is switched on in turn, and some sweep has to find it.
//!
//! `RUSTC_WORKSPACE_WRAPPER=$PWD/.ci/rustc-planted cargo test --all-features --test planted planted_bug` runs it.
#![cfg(topiclog_planted)]
#![allow(clippy::disallowed_methods, reason = "tests read fixtures as plain files")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test stops at the first surprise and says why")]
#![allow(dead_code, reason = "of the modules only the sweeps are run here, all of them by `it`")]

#[macro_use]
mod tell;

mod compaction;
mod compaction_by_index;
mod compaction_crashes;
mod crashes;
mod damage;
mod durability;
mod golden;
mod group_kills;
mod kafka_dirs;
mod kernel;
mod kills;
mod processes;
mod recoveries;
mod regressions;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use topiclog::planted::{Bug, plant};

/// The sweeps, at small budgets, cheapest first.
fn sweeps() -> [(&'static str, fn()); 14] {
    [
        ("Kafka's bytes", crate::golden::a_plain_batch),
        ("regressions", crate::regressions::all),
        ("recoveries", crate::recoveries::all),
        ("durability", crate::durability::all),
        ("compaction", crate::compaction::all),
        ("compaction by the key index", crate::compaction_by_index::all),
        ("one writer", crate::processes::a_second_writer_is_refused_in_this_process_and_in_another),
        ("byte flips", crate::damage::no_changed_byte_is_passed_over_in_silence),
        ("lengths", crate::damage::no_other_length_is_passed_over_in_silence),
        ("crash states of compaction", || crate::compaction_crashes::crash_sweep(4_000, 3).finish(0)),
        ("faults in compaction", || crate::compaction_crashes::fault_sweep(1_500).finish(0)),
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
    // A sweep that fails by itself would find anything.
    let fails = |sweep: fn()| catch_unwind(AssertUnwindSafe(sweep)).is_err();
    let failing: Vec<_> = sweeps().into_iter().filter(|(_, sweep)| fails(*sweep)).map(|(name, _)| name).collect();
    assert!(failing.is_empty(), "these fail with nothing planted: {failing:?}");
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        let started = Instant::now();
        plant(Some(bug));
        let found = sweeps().into_iter().find(|(_, sweep)| fails(*sweep));
        plant(None);
        match found {
            Some((name, _)) => tell!("planted {bug:?}: found by {name}, {:.1} s", started.elapsed().as_secs_f64()),
            None => missed.push(bug),
        }
    }
    drop(std::panic::take_hook());
    tell!("planted bugs: {} of {} found, missed {missed:?}", Bug::ALL.len() - missed.len(), Bug::ALL.len());
    assert_eq!(missed, [], "these must be found");
}
