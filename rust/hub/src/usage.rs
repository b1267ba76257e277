//! How many bytes each tenant had stored today (UTC), counted in the commit that counts the object: a restart forgets nothing.

use std::collections::HashMap;

use crate::accept::ALLOWED;
use crate::db::{Db, DbError, Space};
use crate::error::HubError;
use crate::keys;
use crate::writer::Writer;

const DAY_MS: u64 = 86_400_000;
/// Longest name that is counted by; producers of direct tasks may send anything.
const MOST_NAME: usize = 512;

/// The present day's sums.
#[derive(Default)]
pub struct Usage {
    day: u64,
    bytes: HashMap<String, u64>,
    /// What the present group adds.
    fresh: HashMap<String, u64>,
    /// What is projected now was stored on another day.
    rests: bool,
}

impl Usage {
    /// What the database says of the newest day it knows.
    pub fn open(db: &Db) -> Result<Self, DbError> {
        let mut usage = Self::default();
        let (from, to) = keys::usage_until(u64::MAX);
        for item in db.range(Space::Meta, &from, &to) {
            let (key, value) = item?;
            let Some((day, tenant)) = keys::parse_usage(&key) else { continue };
            if day > usage.day {
                usage = Self { day, ..Self::default() };
            }
            usage.bytes.insert(tenant, keys::number(Some(&value)));
        }
        Ok(usage)
    }

    /// Adds to the tenant's sum.
    pub fn add(&mut self, tenant: &str, bytes: u64) {
        if bytes == 0 || self.rests || tenant.len() > MOST_NAME {
            return;
        }
        match self.fresh.get_mut(tenant) {
            Some(sum) => *sum += bytes,
            None => drop(self.fresh.insert(tenant.to_owned(), bytes)),
        }
    }

    /// The tenant's sum of the day of `now_ms`. A clock that was set back begins no day anew.
    pub fn today(&self, tenant: &str, now_ms: u64) -> u64 {
        let before = if now_ms / DAY_MS > self.day { 0 } else { self.bytes.get(tenant).copied().unwrap_or(0) };
        before + self.fresh.get(tenant).copied().unwrap_or(0)
    }
}

impl Writer {
    /// Refuses a job of a tenant that has had stored as much as it may today.
    pub(crate) fn check_daily(&self, tenant: &str, most: u64) -> Result<(), HubError> {
        let now_ms = self.stage.now_ms;
        if most == 0 || self.usage.today(tenant, now_ms) < most {
            return Ok(());
        }
        let message = format!("this tenant had {most} bytes stored today, as many as it may; {ALLOWED}");
        Err(HubError::refused("RATE_LIMITED_BYTES", message).after_ms(DAY_MS - now_ms % DAY_MS))
    }

    /// Does what finds again what was stored long ago: nobody's day.
    pub(crate) fn uncounted<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.usage.rests = true;
        let done = work(self);
        self.usage.rests = false;
        done
    }

    /// Puts what the group adds into its commit.
    pub(crate) fn note_usage(&mut self) {
        if self.usage.fresh.is_empty() {
            return;
        }
        let day = self.stage.now_ms / DAY_MS;
        if day > self.usage.day {
            for tenant in std::mem::take(&mut self.usage.bytes).into_keys() {
                self.stage.delete(Space::Meta, keys::usage(self.usage.day, &tenant));
            }
            self.usage.day = day;
        }
        for (tenant, more) in std::mem::take(&mut self.usage.fresh) {
            let key = keys::usage(self.usage.day, &tenant);
            let sum = self.usage.bytes.entry(tenant).or_default();
            *sum = sum.saturating_add(more);
            self.stage.put(Space::Meta, key, sum.to_be_bytes().to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_day_begins_at_nothing_and_a_clock_set_back_begins_none() {
        let mut usage = Usage { day: 10, bytes: [("a".to_owned(), 5)].into(), ..Default::default() };
        usage.add("a", 2);
        usage.add("a", 1);
        usage.add("b", 0);
        let at = |day: u64| day * DAY_MS + 7;
        assert_eq!([at(9), at(10), at(11)].map(|now| usage.today("a", now)), [8, 8, 3]);
        assert_eq!((usage.today("b", at(10)), usage.fresh.len()), (0, 1));
    }

    #[test]
    fn names_beyond_reason_are_not_kept() {
        let mut usage = Usage::default();
        usage.add(&"x".repeat(MOST_NAME + 1), 9);
        assert!(usage.fresh.is_empty());
    }
}
