//! Whether a server runs in a data directory, by everything that PostgreSQL itself leaves there and in the kernel.
//!
//! A process number alone proves nothing: the server may run in another container or on another machine that shares the
//! directory. PostgreSQL also looks whether its shared memory is still attached (`PGSharedMemoryIsInUse`); this does
//! the same with what `/proc` shows.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::destination_error::{DestinationError, io_error};

const PID_FILE: &str = "postmaster.pid";

/// What is known of a server in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
enum ServerTrace {
    /// None runs.
    None,
    /// This process, or a child of it, runs.
    Running(i32),
    /// One may run where this process cannot look, and why that is not ruled out.
    Unclear(String),
}

/// Refuses a directory in which a server runs, or may. `force` takes the user's word for the latter.
///
/// # Errors
/// [`DestinationError::Running`], [`DestinationError::MayRun`], or what the operating system said.
pub(super) fn check_at_rest(pgdata: &Path, force: bool) -> Result<(), DestinationError> {
    match find_server(pgdata, &KernelView::of_this_machine())? {
        ServerTrace::None => Ok(()),
        ServerTrace::Running(pid) => Err(DestinationError::Running { path: pgdata.to_owned(), pid }),
        ServerTrace::Unclear(_) if force => Ok(()),
        ServerTrace::Unclear(why) => Err(DestinationError::MayRun { path: pgdata.to_owned(), why }),
    }
}

/// What the kernel shows: a value, so that tests can show something else.
#[derive(Clone, Debug)]
struct KernelView {
    /// Where the kernel shows processes: `/proc`.
    proc: PathBuf,
    /// Seconds since 1970 when the machine was started.
    booted: Option<i64>,
}

impl KernelView {
    fn of_this_machine() -> KernelView {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let booted = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        KernelView { proc: "/proc".into(), booted }
    }

    /// A server process that works in this directory: each of them, the postmaster and its children, has it as its
    /// working directory. Seen only of processes that this one may look at.
    fn process_in(&self, pgdata: &Path) -> Option<i32> {
        let processes = fs::read_dir(&self.proc).ok()?.flatten();
        processes
            .filter_map(|entry| {
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                let name = fs::read_to_string(entry.path().join("comm")).ok()?;
                let is_server = name.starts_with("postgres") || name.starts_with("postmaster");
                let there = fs::read_link(entry.path().join("cwd")).ok()?;
                (is_server && there == pgdata).then_some(pid)
            })
            .min()
    }

    /// The System V segment with this key and number.
    fn segment(&self, key: i64, id: i64) -> Option<SharedSegment> {
        let text = fs::read_to_string(self.proc.join("sysvipc/shm")).ok()?;
        text.lines().skip(1).find_map(|line| {
            let field: Vec<i64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
            let ours = field.first() == Some(&key) && field.get(1) == Some(&id);
            Some(SharedSegment { creator: *field.get(4)?, attached: *field.get(6)? }).filter(|_| ours)
        })
    }
}

/// A System V shared memory segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct SharedSegment {
    creator: i64,
    attached: i64,
}

fn find_server(pgdata: &Path, kernel: &KernelView) -> Result<ServerTrace, DestinationError> {
    // A server that lost its postmaster has processes that still write; one whose file was removed, too.
    if let Some(pid) = kernel.process_in(pgdata) {
        return Ok(ServerTrace::Running(pid));
    }
    let path = pgdata.join(PID_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ServerTrace::None),
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    let line = |number: usize| text.lines().nth(number).map(str::trim).unwrap_or_default();
    // Of a standalone server the number is negative (`CreateLockFile`, miscinit.c).
    let Some(pid) = line(0).parse::<i32>().ok().map(i32::saturating_abs).filter(|pid| *pid > 0) else {
        return Ok(ServerTrace::Unclear(format!("{PID_FILE} names no process")));
    };
    if is_alive(pid) {
        return Ok(trace_of_process(pgdata, pid, kernel));
    }
    // Line 3 is when it was started, line 7 the key and the number of its shared memory (`pidfile.h`).
    let mut shared = line(6).split_whitespace().map(|word| word.parse::<i64>().ok());
    let (key, id) = (shared.next().flatten(), shared.next().flatten());
    let segment = key.zip(id).and_then(|(key, id)| kernel.segment(key, id));
    match segment {
        Some(SharedSegment { attached, .. }) if attached > 0 => {
            let why = format!("{attached} processes are still attached to the shared memory of its server");
            return Ok(ServerTrace::Unclear(why));
        }
        // A server that was killed on this machine leaves its segment, and no process is attached to it.
        Some(SharedSegment { creator, .. }) if creator == i64::from(pid) => return Ok(ServerTrace::None),
        _ => {}
    }
    if started_before_boot(line(2), kernel) && is_local(pgdata) {
        return Ok(ServerTrace::None);
    }
    Ok(ServerTrace::Unclear(format!(
        "{PID_FILE} names process {pid}, which this machine does not show; the server may run in another container or \
         on another machine"
    )))
}

/// A process that is alive: the server, unless it certainly is another program that got the same number.
fn trace_of_process(pgdata: &Path, pid: i32, kernel: &KernelView) -> ServerTrace {
    let of = kernel.proc.join(pid.to_string());
    let name = fs::read_to_string(of.join("comm")).unwrap_or_default();
    let elsewhere = fs::read_link(of.join("cwd")).is_ok_and(|there| there != pgdata);
    let is_server = name.is_empty() || name.starts_with("postgres") || name.starts_with("postmaster");
    if is_server && !elsewhere {
        return ServerTrace::Running(pid);
    }
    let name = name.trim();
    ServerTrace::Unclear(format!(
        "{PID_FILE} names process {pid}, which is another program here ({name}); the server may run in another \
         container or on another machine"
    ))
}

fn is_alive(pid: i32) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return true };
    !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

/// Whether a server that was started then cannot have lived until now, because this kernel is younger.
fn started_before_boot(started: &str, kernel: &KernelView) -> bool {
    let started: Option<i64> = started.parse().ok();
    // A clock may be stepped by some seconds while a machine starts.
    const CLOCK_STEP_SECONDS: i64 = 60;
    started.zip(kernel.booted).is_some_and(|(started, booted)| started.saturating_add(CLOCK_STEP_SECONDS) < booted)
}

/// Whether no other machine can have the directory's file system mounted.
fn is_local(pgdata: &Path) -> bool {
    // ext2 to ext4, XFS, btrfs, tmpfs, ZFS and f2fs, by their magic numbers (`statfs(2)`). overlayfs may be on any.
    const LOCAL: [i64; 6] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x2FC1_2FC1, 0xF2F5_2010];
    rustix::fs::statfs(pgdata)
        .is_ok_and(|found| LOCAL.iter().any(|magic| i128::from(*magic) == i128::from(found.f_type)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{KernelView, ServerTrace, find_server};

    /// A directory with this `postmaster.pid`, and a kernel with these segments that was started at 2000.
    fn trace(pid_file: Option<&str>, segments: &str) -> ServerTrace {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(dir.path().join("proc/sysvipc")).unwrap();
        fs::create_dir(&data).unwrap();
        let shown = format!("       key      shmid perms                  size  cpid  lpid nattch   uid\n{segments}");
        fs::write(dir.path().join("proc/sysvipc/shm"), shown).unwrap();
        if let Some(text) = pid_file {
            fs::write(data.join("postmaster.pid"), text).unwrap();
        }
        find_server(&data, &KernelView { proc: dir.path().join("proc"), booted: Some(2000) }).unwrap()
    }

    fn pid_file(pid: u32, started: u32) -> String {
        format!("{pid}\n/data\n{started}\n5432\n/tmp\n*\n  4242         7\nready   \n")
    }

    #[test]
    fn a_dead_server_is_told_from_one_that_cannot_be_seen() {
        let dead = i32::MAX.unsigned_abs();
        let unclear = |trace| matches!(trace, ServerTrace::Unclear(_));
        assert_eq!(trace(None, ""), ServerTrace::None);
        // Killed on this machine: its segment is left, and no process is attached.
        let left = format!("      4242          7   600                    56 {dead} {dead}      0   101\n");
        assert_eq!(trace(Some(&pid_file(dead, 3000)), &left), ServerTrace::None);
        // A child has it still.
        let held = format!("      4242          7   600                    56 {dead} {dead}      1   101\n");
        assert!(unclear(trace(Some(&pid_file(dead, 3000)), &held)));
        // Another server's segment, and none.
        let other = "      4242          7   600                    56  17  17      0   101\n";
        assert!(unclear(trace(Some(&pid_file(dead, 3000)), other)));
        assert!(unclear(trace(Some(&pid_file(dead, 3000)), "")));
        // The machine was started since.
        assert_eq!(trace(Some(&pid_file(dead, 1000)), ""), ServerTrace::None);
        assert!(unclear(trace(Some(&pid_file(dead, 1990)), "")), "a clock may be stepped");
        assert!(unclear(trace(Some("?"), "")));
    }

    #[test]
    fn a_living_process_is_the_server_or_got_its_number() {
        let own = std::process::id();
        // No /proc of it: it is taken for the server.
        assert_eq!(trace(Some(&pid_file(own, 3000)), ""), ServerTrace::Running(own.cast_signed()));
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("postmaster.pid"), pid_file(own, 3000)).unwrap();
        let kernel = KernelView { proc: "/proc".into(), booted: None };
        assert!(matches!(find_server(&data, &kernel).unwrap(), ServerTrace::Unclear(_)), "this is no server");
        assert_eq!(kernel.process_in(Path::new("/nowhere")), None);
    }
}
