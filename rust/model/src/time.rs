//! What to make of a clock that somebody may set.

/// A clock that is further ahead than this was set for the first time, as on a machine without one of its own.
const FIRST_SET_MS: u64 = 86_400_000;

/// The time of day, in milliseconds, for deciding that something is over: never ahead of the time that has really passed.
///
/// `steady_ms` is the wall clock of the process's beginning plus what a clock that never jumps has counted since; `wall_ms` the wall clock now.
pub const fn cautious(steady_ms: u64, wall_ms: u64) -> u64 {
    let jumped = wall_ms > steady_ms && wall_ms - steady_ms <= FIRST_SET_MS;
    if jumped { steady_ms } else { wall_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// | steady | wall | taken |
    #[test]
    fn table_of_jumps() {
        const HOUR: u64 = 3_600_000;
        const NOW: u64 = 1_700_000_000_000;
        let table = [
            (NOW, NOW, NOW),
            (NOW, NOW + HOUR, NOW),
            (NOW, NOW - HOUR, NOW - HOUR),
            (NOW, NOW + 23 * HOUR, NOW),
            (HOUR, NOW, NOW),
            (NOW, 0, 0),
        ];
        for (steady, wall, taken) in table {
            assert_eq!(cautious(steady, wall), taken, "{steady} {wall}");
        }
    }
}
