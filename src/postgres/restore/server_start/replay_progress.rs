//! Whether a recovering server does anything: the positions in its `pg_control`, the segments that it asks for and
//! reads, and the processor time of its processes. None of it needs a connection.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::postmaster::Postmaster;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::PgControl;
use crate::postgres::format::segment::{SegmentName, SegmentSize};

/// Processor time that counts as progress, in hundredths of a second (`USER_HZ`). A server that waits wakes up now and
/// then, and takes hours to use so much.
const WORKING_TICKS: u64 = 50;

/// What a server did until now.
#[derive(Debug, Default)]
pub(super) struct ReplayWatch {
    seen: Option<ReplayState>,
    since: Duration,
    position: Option<Lsn>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct ReplayState {
    control: Option<PgControl>,
    segments: Vec<String>,
    fetched: Option<SystemTime>,
    ticks: u64,
}

impl ReplayWatch {
    /// Looks at the server. `now` is a monotonic time.
    pub(super) fn look(&mut self, server: &Postmaster, pgdata: &Path, control: Option<&PgControl>, now: Duration) {
        let processes = server.processes();
        let mut state = ReplayState {
            control: control.cloned(),
            segments: segments_in_titles(&processes),
            fetched: fs::metadata(pgdata.join("pg_wal")).and_then(|metadata| metadata.modified()).ok(),
            ticks: processes.iter().filter_map(|pid| processor_ticks(*pid)).sum(),
        };
        self.position = self.position.max(position_of(&state));
        match &self.seen {
            Some(seen) if !is_progress(seen, &state) => {
                // Small amounts of processor time add up.
                state.ticks = seen.ticks;
            }
            _ => self.since = now,
        }
        self.seen = Some(state);
    }

    /// How long nothing has happened.
    pub(super) const fn idle(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }

    /// How far replay has come, roughly.
    pub(super) const fn position(&self) -> Option<Lsn> {
        self.position
    }
}

fn is_progress(before: &ReplayState, now: &ReplayState) -> bool {
    before.control != now.control
        || before.segments != now.segments
        || before.fetched != now.fetched
        || now.ticks.saturating_sub(before.ticks) >= WORKING_TICKS
}

fn position_of(state: &ReplayState) -> Option<Lsn> {
    let control = state.control.as_ref()?;
    let size: SegmentSize = control.segment_size;
    let reading = state.segments.iter().filter_map(|name| Some(SegmentName::parse(name)?.number(size)?.start(size)));
    reading.chain(control.min_recovery_point).chain([control.redo]).max()
}

/// The segments named in the titles of processes: that of the startup process has the one that it reads
/// (`set_ps_display`).
fn segments_in_titles(processes: &[u32]) -> Vec<String> {
    let title = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = processes.iter().map(title).flat_map(|title| {
        let text = String::from_utf8_lossy(&title).into_owned();
        text.split(|c: char| !c.is_ascii_hexdigit()).map(str::to_owned).collect::<Vec<_>>()
    });
    words.filter(|word| SegmentName::parse(word).is_some()).collect()
}

/// The processor time of a process and of those of its children that have ended (`proc(5)`, fields 14 to 17).
fn processor_ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have blanks and parentheses; field 3 follows its end.
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().skip(11).take(4).filter_map(|ticks| ticks.parse::<u64>().ok()).sum())
}

#[cfg(test)]
mod tests {
    use super::{ReplayState, is_progress, processor_ticks, segments_in_titles};

    #[test]
    fn waking_up_now_and_then_is_no_progress_and_work_is() {
        let state = |ticks| ReplayState { control: None, segments: Vec::new(), fetched: None, ticks };
        assert!(!is_progress(&state(100), &state(149)));
        assert!(is_progress(&state(100), &state(150)));
        let reading = ReplayState { segments: vec!["000000010000000000000003".to_owned()], ..state(100) };
        assert!(is_progress(&state(100), &reading));
    }

    #[test]
    fn the_time_of_this_process_is_what_the_kernel_counts() {
        let own = std::process::id();
        let before = processor_ticks(own).unwrap();
        let mut sum = 0_u64;
        while processor_ticks(own).unwrap() == before {
            sum = (0..1_000_000_u64).fold(sum, |sum, n| sum.wrapping_add(n * n));
        }
        assert!(std::hint::black_box(sum) > 0 && processor_ticks(u32::MAX).is_none());
        assert!(segments_in_titles(&[own]).is_empty());
    }
}
