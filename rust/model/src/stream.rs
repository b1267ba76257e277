//! The topics of stream `fetchbox`, their partitions and the delay tiers of retries.

/// A topic: a partitioned append-only log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Topic {
    /// One message per resource to fetch.
    Tasks = 1,
    /// Tasks that wait for their next attempt; a partition per delay tier.
    Retry = 2,
    /// What workers report: `JobStatus` with outcomes.
    Status = 3,
    /// `JobLog`.
    Logs = 4,
    /// `DeadLetterTask`.
    Dlq = 5,
    /// `JobStatus` of jobs that are settled.
    Events = 6,
}

/// The delays of `jobs.retry`, in seconds, one partition each.
pub const RETRY_TIERS_SECONDS: [u64; 5] = [15, 60, 300, 900, 3600];

impl Topic {
    /// Every topic.
    pub const ALL: [Topic; 6] = [Topic::Tasks, Topic::Retry, Topic::Status, Topic::Logs, Topic::Dlq, Topic::Events];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Topic::Tasks => "jobs.tasks",
            Topic::Retry => "jobs.retry",
            Topic::Status => "jobs.status",
            Topic::Logs => "jobs.logs",
            Topic::Dlq => "jobs.dlq",
            Topic::Events => "jobs.events",
        }
    }

    /// How many partitions it has; `jobs.tasks` takes its number from the configuration.
    pub const fn default_partitions(self) -> u32 {
        match self {
            Topic::Tasks => 64,
            Topic::Retry => RETRY_TIERS_SECONDS.len() as u32,
            Topic::Status | Topic::Logs => 4,
            Topic::Dlq | Topic::Events => 2,
        }
    }

    /// The topic of that name.
    pub fn from_name(name: &str) -> Option<Topic> {
        Topic::ALL.into_iter().find(|topic| topic.name() == name)
    }

    /// The topic of that number.
    pub fn from_id(id: u8) -> Option<Topic> {
        Topic::ALL.into_iter().find(|topic| *topic as u8 == id)
    }
}

/// The tier for a delay: the longest that is not longer than it, so that no task comes back late; the first for shorter ones.
pub fn retry_tier(delay_ms: u64) -> u32 {
    let longest = RETRY_TIERS_SECONDS.iter().rposition(|seconds| seconds * 1000 <= delay_ms);
    longest.unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back_to_the_topic() {
        for topic in Topic::ALL {
            assert_eq!(Topic::from_name(topic.name()), Some(topic));
            assert_eq!(Topic::from_id(topic as u8), Some(topic));
        }
        assert_eq!(Topic::from_name("jobs.other"), None);
        assert_eq!(Topic::from_id(0), None);
    }

    #[test]
    fn a_retry_goes_to_the_longest_tier_that_is_not_late() {
        for (delay_ms, tier) in
            [(0, 0), (15_000, 0), (59_999, 0), (60_000, 1), (299_000, 1), (300_000, 2), (900_000, 3), (3_600_000, 4), (u64::MAX, 4)]
        {
            assert_eq!(retry_tier(delay_ms), tier, "{delay_ms} ms");
        }
    }
}
