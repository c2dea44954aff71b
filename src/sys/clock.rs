//! The clock.

use std::io;

use nix::time::{ClockId, clock_gettime};

/// Returns `CLOCK_MONOTONIC` in microseconds, which is what systemd compares `MONOTONIC_USEC=` with.
///
/// # Errors
///
/// Those of clock_gettime(2); none are known for this clock.
pub fn monotonic_micros() -> io::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let seconds = u64::try_from(now.tv_sec()).map_err(io::Error::other)?;
    let micros = u64::try_from(now.tv_nsec() / 1000).map_err(io::Error::other)?;
    Ok(seconds * 1_000_000 + micros)
}
