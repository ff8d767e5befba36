//! The process that holds a pod's namespaces: waits for the signal to end, and reaps what the pod's containers leave behind.

fn main() -> std::io::Result<()> {
    // SAFETY: the set is initialised by sigemptyset before it is read, and lives through both calls.
    let signals = unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD] {
            libc::sigaddset(&raw mut signals, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut());
        signals
    };
    loop {
        // SAFETY: the set was initialised above; no information about the signal is asked for.
        match unsafe { libc::sigwaitinfo(&raw const signals, std::ptr::null_mut()) } {
            libc::SIGCHLD => reap(),
            libc::SIGTERM | libc::SIGINT => return Ok(()),
            _ => return Err(std::io::Error::last_os_error()),
        }
    }
}

fn reap() {
    // SAFETY: no status is asked for, so no pointer is written through.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}
