//! What tests say.

/// Says a line whether the test passes or not: counts and skips are to be seen in every run.
macro_rules! tell {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stderr(), $($words)*).ok();
    }};
}
