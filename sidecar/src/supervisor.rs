//! The process above the one that serves. It holds the listening sockets, so that a worker which dies leaves connections waiting
//! instead of refused, starts the next one, and hands the sockets from one version of the program to another. It knows no
//! configuration, has one thread, and waits in poll(2).

mod backoff;
mod channel;
mod crew;
mod link;
mod message;
mod process;
mod store;

use std::{
    io,
    os::fd::AsFd as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use crds::proxy::{LogFormat, LogLevel};
use serde::{Deserialize, Serialize};

use self::{
    channel::{Channel, Packet},
    crew::{Action, Crew},
    message::{How, Order, PROTOCOL, Report, Welcome},
    process::{Program, Signals, fork, kill, reap, wait},
    store::Store,
};
use crate::{
    run::{footprint, logging},
    source::state::StateDir,
};

pub use self::{
    link::{Link, LinkError},
    process::{ask_to_upgrade, start_time},
};
pub(crate) use self::{
    link::{Orders, Teller, Wish},
    store::{close, listens},
};

/// By then a worker has started; see [`footprint`].
const STARTED: Duration = Duration::from_secs(5);

/// What a supervisor has to know.
#[derive(Debug)]
pub struct Settings {
    /// The least severe level that it logs.
    pub log_level: LogLevel,
    /// The shape of its log lines.
    pub log_format: LogFormat,
    /// Whether SIGUSR2 starts a worker from the file on disk.
    pub upgradable: bool,
    /// Folder for [`Status`].
    pub state_dir: Option<PathBuf>,
}

/// What a supervisor tells about itself, in a file of the state folder.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Process id of the supervisor.
    pub pid: u32,
    /// Its [`start_time`].
    pub started: u64,
    /// Process id of the worker that serves, or is about to.
    pub worker: Option<i32>,
    /// Whether that worker has said that it serves.
    pub serves: bool,
    /// Version of the worker.
    pub version: String,
    /// Workers that ended unasked.
    pub restarts: u64,
    /// Workers that took over from another.
    pub upgrades: u64,
    /// Upgrades that failed.
    pub refused: u64,
    /// Why the last one failed.
    pub refusal: String,
}

/// What this process is to be.
#[derive(Debug)]
pub enum Role {
    /// A worker.
    Worker(Link),
    /// A supervisor that has come to its end, with this exit code.
    Ended(u8),
}

/// Starts a worker and keeps one running, until a signal says otherwise. Returns twice: in the workers, which are copies of this process,
/// and in the supervisor at its end. Must be called while there is one thread.
///
/// # Errors
/// The system refuses what a supervisor needs.
pub fn supervise(settings: Settings) -> io::Result<Role> {
    // For as long as this process is the supervisor.
    let _log = logging::scoped(settings.log_level, settings.log_format);
    let signals = Signals::block()?;
    let mut supervisor = Supervisor {
        program: None,
        signals,
        crew: Crew::default(),
        workers: Vec::new(),
        store: Store::default(),
        shrink: None,
        status: Status::default(),
        silent: false,
        settings,
    };
    supervisor.run()
}

struct Supervisor {
    settings: Settings,
    /// What workers are made of, if not of this process.
    program: Option<Program>,
    signals: Signals,
    crew: Crew,
    workers: Vec<Worker>,
    store: Store,
    /// When memory that only a start needs is given back.
    shrink: Option<Instant>,
    /// As it was last written.
    status: Status,
    /// Whether it could not be written the last time, which was said.
    silent: bool,
}

struct Worker {
    number: u64,
    pid: i32,
    channel: Channel,
    /// Whether its end of the channel is closed.
    silent: bool,
    /// The program it was made of, if that is not the one that others are.
    program: Option<Program>,
}

impl Supervisor {
    fn run(&mut self) -> io::Result<Role> {
        let actions = self.crew.start(Instant::now());
        let mut exit = self.carry_out(actions);
        loop {
            if let Some(role) = exit {
                return Ok(role);
            }
            self.tell_status();
            let deadline = self.crew.deadline().into_iter().chain(self.shrink).min();
            let channels = self.workers.iter().filter(|worker| !worker.silent).map(|worker| &worker.channel);
            wait(&self.signals, channels, deadline)?;
            exit = self.listen().or_else(|| self.obey()).or_else(|| self.reap()).or_else(|| self.tick());
        }
    }

    /// Hears what workers say.
    fn listen(&mut self) -> Option<Role> {
        let numbers: Vec<u64> = self.workers.iter().map(|worker| worker.number).collect();
        numbers.into_iter().find_map(|number| self.hear(number))
    }

    /// Hears one worker out.
    fn hear(&mut self, number: u64) -> Option<Role> {
        loop {
            let worker = self.worker(number)?;
            let (report, socket) = match worker.channel.receive() {
                Ok(Packet::Message(report, socket)) => (report, socket),
                Ok(Packet::Garbage) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // It has ended, or is about to; SIGCHLD tells.
                Ok(Packet::End) | Err(_) => {
                    worker.silent = true;
                    return None;
                }
            };
            let now = Instant::now();
            let actions = match (report, socket) {
                (Report::Holds { label }, Some(socket)) if self.crew.may_hold(number) => {
                    self.store.keep(label, socket, number);
                    continue;
                }
                (Report::Closed { label }, _) if self.crew.is_main(number) => {
                    self.store.forget(&label);
                    continue;
                }
                (Report::Drains { phase }, _) => {
                    self.crew.drains(number, phase, now);
                    continue;
                }
                (Report::Leaving { within }, _) => self.crew.leaving(number, within, now),
                (Report::Ready { version }, _) => self.crew.ready(number, version, now),
                _ => continue,
            };
            if let Some(role) = self.carry_out(actions) {
                return Some(role);
            }
        }
    }

    /// Does what signals say.
    fn obey(&mut self) -> Option<Role> {
        while let Some(signal) = self.signals.next() {
            let now = Instant::now();
            let actions = match signal {
                libc::SIGTERM | libc::SIGINT => self.crew.end(signal == libc::SIGINT, now),
                libc::SIGUSR2 if self.settings.upgradable => self.crew.upgrade(now),
                libc::SIGUSR2 => {
                    tracing::warn!("SIGUSR2 means nothing here: in a pod, another image is the upgrade.");
                    Vec::new()
                }
                _ => Vec::new(), // SIGCHLD
            };
            if let Some(role) = self.carry_out(actions) {
                return Some(role);
            }
        }
        None
    }

    fn reap(&mut self) -> Option<Role> {
        while let Some((pid, how)) = reap() {
            let Some(at) = self.workers.iter().position(|worker| worker.pid == pid) else { continue };
            let number = self.workers[at].number;
            // What it said last is still in the channel.
            if let Some(role) = self.hear(number) {
                return Some(role);
            }
            self.workers.remove(at);
            let actions = self.crew.ended(number, &how, Instant::now());
            if let Some(role) = self.carry_out(actions) {
                return Some(role);
            }
        }
        None
    }

    fn tick(&mut self) -> Option<Role> {
        let now = Instant::now();
        if self.shrink.take_if(|at| *at <= now).is_some() {
            footprint::drop_code_or_tell();
        }
        let actions = self.crew.tick(now);
        self.carry_out(actions)
    }

    fn carry_out(&mut self, actions: Vec<Action>) -> Option<Role> {
        let mut actions = std::collections::VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Start { number, from_disk, welcome } => match self.start(number, from_disk, welcome) {
                    Ok(Some(link)) => return Some(Role::Worker(link)),
                    Ok(None) => {}
                    Err(error) => {
                        actions.extend(self.crew.ended(number, &How::NotStarted(error.to_string()), Instant::now()));
                    }
                },
                Action::Tell(number, order) => self.tell(number, &order),
                Action::Kill(number) => self.worker(number).into_iter().for_each(|worker| kill(worker.pid)),
                Action::Adopt(number) => {
                    if let Some(program) = self.worker(number).and_then(|worker| worker.program.take()) {
                        self.program = Some(program);
                    }
                }
                Action::CloseSocketsOf(number) => self.store.close_of(number),
                Action::Exit(code) => return Some(Role::Ended(code)),
            }
        }
        None
    }

    /// Returns the link in the new worker, if that is a copy of this process.
    fn start(&mut self, number: u64, from_disk: bool, welcome: Welcome) -> io::Result<Option<Link>> {
        let program = from_disk.then(Program::on_disk).transpose()?;
        let (channel, theirs) = Channel::pair()?;
        // All fits into the channel before anybody reads.
        let welcome = Welcome { protocol: PROTOCOL, sockets: self.store.all().len(), ..welcome };
        channel.send(&Order::Welcome(welcome), None)?;
        for held in self.store.all() {
            channel.send(&Order::Socket { label: held.label.clone() }, Some(held.socket.as_fd()))?;
        }
        let pid = match program.as_ref().or(self.program.as_ref()) {
            Some(program) => program.start(&theirs, &self.signals)?,
            None => match fork(&self.signals)? {
                Some(pid) => pid,
                None => return Ok(Some(Link::of_copy(theirs))),
            },
        };
        self.workers.push(Worker { number, pid, channel, silent: false, program });
        self.shrink = Some(Instant::now() + STARTED);
        Ok(None)
    }

    fn tell(&mut self, number: u64, order: &Order) {
        let Some(worker) = self.worker(number) else { return };
        if let Err(error) = worker.channel.send(order, None) {
            // It has ended, as will be seen at once, or it does not listen any more.
            tracing::warn!(%error, pid = worker.pid, ?order, "A worker could not be told.");
        }
    }

    fn worker(&mut self, number: u64) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.number == number)
    }

    /// Writes what has changed for whoever asks.
    fn tell_status(&mut self) {
        let (pid, tally) = (std::process::id(), self.crew.tally());
        let Some(dir) = self.settings.state_dir.as_ref().filter(|_| !tally.version.is_empty()) else { return };
        let worker = self.workers.iter().find(|worker| Some(worker.number) == tally.main).map(|worker| worker.pid);
        let status = Status {
            pid,
            started: start_time(pid).unwrap_or_default(),
            worker,
            serves: tally.serves,
            version: tally.version,
            restarts: tally.restarts,
            upgrades: tally.upgrades,
            refused: tally.refused,
            refusal: tally.refusal,
        };
        if status == self.status {
            return;
        }
        match StateDir::open(dir).and_then(|state| state.keep_supervisor(&status)) {
            Ok(()) => (self.status, self.silent) = (status, false),
            // It is tried again whenever something happens.
            Err(error) if !self.silent => {
                self.silent = true;
                tracing::warn!(dir = %dir.display(), %error, "The supervisor's status can't be written.");
            }
            Err(_) => {}
        }
    }
}
