//! Processes and signals, as the system has them.

use std::{
    env,
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt, process::CommandExt},
    },
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use super::{channel::Channel, message::How};

/// Names the channel to a worker: the supervisor's process id and the number of the descriptor.
pub(super) const CHANNEL: &str = "FETCHR_WORKER_CHANNEL";

/// What the kernel allows for the name of a process.
const NAME: usize = 15;

/// Starts a worker that is a copy of this process: its arguments are read, and pages that neither writes to are shared. Returns its process
/// id, or nothing in the worker. This process must have one thread.
pub(super) fn fork(signals: &Signals) -> io::Result<Option<i32>> {
    let parent = std::process::id();
    // SAFETY: there is one thread, so whatever the copy finds is as the thread left it.
    match unsafe { libc::fork() } {
        0 => match become_worker(parent, &signals.before) {
            Ok(()) => Ok(None),
            // It is no worker, and must not go on as a second supervisor.
            // SAFETY: ends this process at once.
            Err(_) => unsafe { libc::_exit(How::NOT_STARTED.into()) },
        },
        pid @ 1.. => Ok(Some(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Another program that workers are made of. It stays the same when its file on disk is replaced.
#[derive(Debug)]
pub(super) struct Program(fs::File);

impl Program {
    /// What is on disk where this program was started from.
    pub(super) fn on_disk() -> io::Result<Self> {
        let path = path_of_start()?;
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(&path);
        file.map(Self).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Starts a worker with the arguments of this process, and returns its process id.
    pub(super) fn start(&self, channel: &Channel, signals: &Signals) -> io::Result<i32> {
        let (parent, end, mask) = (std::process::id(), channel.as_raw_fd(), signals.before);
        let mut words = env::args_os();
        let mut command = Command::new(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        command.arg0(words.next().unwrap_or_else(|| OsString::from("fetchr"))).args(words);
        command.env(CHANNEL, format!("{parent} {end}"));
        // SAFETY: between fork and exec it calls only functions that signal-safety(7) allows; nothing in it allocates.
        unsafe {
            command.pre_exec(move || {
                become_worker(parent, &mask)?;
                check(libc::fcntl(end, libc::F_SETFD, 0))
            });
        }
        // The child is waited for together with all others.
        i32::try_from(command.spawn()?.id()).map_err(io::Error::other)
    }
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs in the new process first of all.
fn become_worker(parent: u32, mask: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: all take numbers, or a pointer to a mask that lives through the call.
    unsafe {
        // A worker without its supervisor would hold ports that nobody can free.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        if libc::getppid() as u32 != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // Orders come by the channel. A terminal, or a service manager that signals all processes, would give them twice.
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR2] {
            if libc::signal(signal, libc::SIG_IGN) == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        check(libc::sigprocmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()))
    }
}

/// The end of the channel that this process was started with, if a supervisor did.
pub(super) fn inherited_channel() -> io::Result<Option<Channel>> {
    let Some(value) = env::var_os(CHANNEL) else { return Ok(None) };
    let numbers = value.to_str().and_then(|value| value.split_once(' '));
    let Some((parent, end)) = numbers.and_then(|(parent, end)| Some((parent.parse::<u32>().ok()?, end.parse::<RawFd>().ok()?)))
    else {
        return Ok(None);
    };
    // Somebody else's variable: a process further down inherited it.
    if std::os::unix::process::parent_id() != parent {
        return Ok(None);
    }
    // SAFETY: sets a flag of a descriptor, or fails if there is none.
    if unsafe { libc::fcntl(end, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as was just seen, and the supervisor made it for this process alone, which asks once.
    let end = unsafe { OwnedFd::from_raw_fd(end) };
    name_process();
    Ok(Some(Channel::of(end)))
}

/// A worker is started by the number of a descriptor, which the kernel takes for its name.
fn name_process() {
    let Some(word) = env::args_os().next().map(PathBuf::from) else { return };
    let name = word.file_name().unwrap_or(word.as_os_str()).as_bytes();
    if let Ok(name) = CString::new(&name[..name.len().min(NAME)]) {
        // SAFETY: the name is a C string that lives through the call. It fails for no name.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

/// Where this program was started from, by the name that was typed: a link to the newest version is followed anew.
fn path_of_start() -> io::Result<PathBuf> {
    let own = env::current_exe();
    let Some(word) = env::args_os().next().map(PathBuf::from) else { return own };
    if word.as_os_str().as_bytes().contains(&b'/') {
        return std::path::absolute(word);
    }
    let folders = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&folders).map(|folder| folder.join(&word)).find(|path| path.is_file());
    found.map_or(own, Ok)
}

/// The signals that concern a supervisor; they are read, and interrupt nothing.
#[derive(Debug)]
pub(super) struct Signals {
    read: OwnedFd,
    /// What was blocked before.
    before: libc::sigset_t,
}

impl Signals {
    pub(super) fn block() -> io::Result<Self> {
        // SAFETY: the masks are plain numbers that live through the calls, for which all zeroes are a valid value.
        unsafe {
            let (mut mask, mut before): (libc::sigset_t, libc::sigset_t) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigemptyset(&mut mask);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR2, libc::SIGCHLD] {
                libc::sigaddset(&mut mask, signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &mask, &mut before) != 0 {
                return Err(io::Error::last_os_error());
            }
            match libc::signalfd(-1, &mask, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                read @ 0.. => Ok(Self { read: OwnedFd::from_raw_fd(read), before }),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    /// The next signal that has come.
    pub(super) fn next(&self) -> Option<i32> {
        // SAFETY: the struct is plain numbers; the call writes at most its length into it.
        unsafe {
            let mut info: libc::signalfd_siginfo = std::mem::zeroed();
            let len = size_of::<libc::signalfd_siginfo>();
            let read = libc::read(self.read.as_raw_fd(), (&raw mut info).cast(), len);
            (usize::try_from(read) == Ok(len)).then(|| i32::try_from(info.ssi_signo).unwrap_or(0))
        }
    }
}

/// Waits until a signal, or something on a channel, is there; or until the deadline.
pub(super) fn wait<'a>(
    signals: &Signals,
    channels: impl Iterator<Item = &'a Channel>,
    deadline: Option<Instant>,
) -> io::Result<()> {
    let readable = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut all: Vec<_> = [signals.read.as_raw_fd()].into_iter().chain(channels.map(AsRawFd::as_raw_fd)).map(readable).collect();
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    // Rounded up, or the last millisecond would be spent in a loop.
    let millis = left.map_or(-1, |left| i32::try_from((left + Duration::from_micros(999)).as_millis()).unwrap_or(i32::MAX));
    // SAFETY: the array lives through the call, with the length that is given.
    match unsafe { libc::poll(all.as_mut_ptr(), all.len() as libc::nfds_t, millis) } {
        0.. => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        },
    }
}

/// The next child that has ended. As the first process of a container that includes processes which lost their parents.
pub(super) fn reap() -> Option<(i32, How)> {
    let mut status = 0;
    // SAFETY: the number lives through the call.
    match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
        pid @ 1.. if libc::WIFSIGNALED(status) => Some((pid, How::Signal(libc::WTERMSIG(status)))),
        pid @ 1.. => Some((pid, How::Code(libc::WEXITSTATUS(status)))),
        _ => None,
    }
}

/// Kills a child that was not reaped.
pub(super) fn kill(pid: i32) {
    // SAFETY: takes numbers; the child was not reaped, so the number is still its own.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Sends a supervisor the signal that means an upgrade.
///
/// # Errors
/// It has ended, or belongs to another user.
pub fn ask_to_upgrade(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: takes numbers.
    match unsafe { libc::kill(pid, libc::SIGUSR2) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// When a process was started, in ticks since the machine was: together with its id that is one process for ever.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_tells_processes_apart() {
        let child = || Command::new("sleep").arg("60").spawn().unwrap();
        let mut earlier = child();
        std::thread::sleep(Duration::from_millis(50)); // ticks are of 10 ms
        let mut later = child();
        let times = [std::process::id(), earlier.id(), later.id()].map(start_time);
        for child in [&mut earlier, &mut later] {
            child.kill().and_then(|()| child.wait()).unwrap();
        }
        assert!(times[0].is_some() && times[0] <= times[1] && times[1] < times[2], "{times:?}");
        assert_eq!(start_time(later.id()), None);
        assert_eq!(start_time(u32::MAX), None);
    }

    #[test]
    fn program_on_disk_is_this_one() {
        Program::on_disk().unwrap();
        assert!(path_of_start().unwrap().is_absolute());
    }
}
