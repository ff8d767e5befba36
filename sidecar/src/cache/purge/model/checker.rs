//! The origin's versions, what was promised of them, and who broke it.

use fastrand::Rng;

use super::{
    super::{
        CutOff, Generation, Uptime, Verdict,
        completion::{Purge, Report},
        log::{Strength, What},
    },
    pod::Pod,
};

const OBJECTS: usize = 6;

/// What an answer must at least be, by what was acknowledged.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Content {
    hard: u64,
    soft: u64,
}

/// A purge, and what it was asked for.
#[derive(Debug)]
pub(super) struct Task {
    pub purge: Purge,
    pub token: u64,
    pub sent: Uptime,
    pub appended: Option<(Generation, u64)>,
    pub looks: u32,
    what: What,
    strength: Strength,
    versions: [u64; OBJECTS],
}

/// What happened in a history.
#[derive(Debug, Default)]
pub(super) struct Checker {
    versions: [u64; OBJECTS],
    needs: [Content; OBJECTS],
    last: Option<(What, Strength)>,
    pub violation: Option<String>,
    pub served: usize,
    pub joined: usize,
    pub shared: usize,
    pub cut_off: usize,
    pub faults: usize,
    pub abandoned: usize,
    pub completed: usize,
    /// Of those, by acknowledgements alone.
    pub quick: usize,
    /// Of those, without somebody whose lease ran out.
    pub ran_out: usize,
    pub folded: u64,
    pub eras: u32,
}

impl Checker {
    pub(super) fn url(object: usize) -> String {
        format!("shop.example/{}/{object}", object % 2)
    }

    pub(super) fn tag(object: usize) -> String {
        format!("t{}", object % 3)
    }

    pub(super) fn policy(object: usize) -> String {
        format!("shop/p{}", object / 3)
    }

    pub(super) fn any(&self, rng: &mut Rng) -> usize {
        rng.usize(0..OBJECTS)
    }

    pub(super) fn version(&self, object: usize) -> u64 {
        self.versions[object]
    }

    pub(super) fn needs(&self, object: usize) -> Content {
        self.needs[object]
    }

    /// The origin changes something, and somebody purges it.
    pub(super) fn publish(&mut self, rng: &mut Rng) -> (What, Strength) {
        let object = rng.usize(0..OBJECTS);
        let what = match rng.u8(0..6) {
            0 => What::Everything,
            1 => What::policy(&Self::policy(object)).expect("plain"),
            2 => What::tag(&Self::tag(object)).expect("plain"),
            3 => What::prefix(&format!("shop.example/{}", object % 2)).expect("plain"),
            _ => What::url(&Self::url(object)).expect("plain"),
        };
        for object in 0..OBJECTS {
            self.versions[object] += u64::from(names(&what, object));
        }
        let strength = if rng.u8(0..4) == 0 { Strength::Soft } else { Strength::Hard };
        self.last = Some((what.clone(), strength));
        (what, strength)
    }

    pub(super) fn task(&mut self, purge: Purge) -> Task {
        let (what, strength) = self.last.take().expect("something was published");
        Task { purge, token: 0, sent: Uptime::ZERO, appended: None, looks: 0, what, strength, versions: self.versions }
    }

    pub(super) fn complete(&mut self, task: &Task, report: &Report) {
        self.completed += 1;
        self.quick += usize::from(report.ran_out.is_empty());
        self.ran_out += usize::from(!report.ran_out.is_empty());
        for object in (0..OBJECTS).filter(|object| names(&task.what, *object)) {
            let needs = &mut self.needs[object];
            needs.soft = needs.soft.max(task.versions[object]);
            if task.strength == Strength::Hard {
                needs.hard = needs.hard.max(task.versions[object]);
            }
        }
    }

    /// A request that came when `needs` was promised got this version.
    pub(super) fn served(&mut self, object: usize, version: u64, verdict: Verdict, needs: Content, cut_off: CutOff) {
        self.served += 1;
        // What may be stale must still not be what was taken away; `Serve` doesn't promise that of what may have been lost.
        let least = match (verdict, cut_off) {
            (Verdict::Fresh, _) => needs.hard.max(needs.soft),
            (_, CutOff::Revalidate) => needs.hard,
            (_, CutOff::Serve) => 0,
        };
        if version < least {
            self.violation = Some(format!("object {object}: version {version} was served, {least} was acknowledged"));
        }
    }

    /// Sums up.
    pub(super) fn add(&mut self, other: &Self) {
        self.served += other.served;
        self.joined += other.joined;
        self.shared += other.shared;
        self.cut_off += other.cut_off;
        self.faults += other.faults;
        self.abandoned += other.abandoned;
        self.completed += other.completed;
        self.quick += other.quick;
        self.ran_out += other.ran_out;
        self.folded += other.folded;
        self.eras = self.eras.max(other.eras);
    }

    /// In the calm at the end, everything must have come to rest.
    pub(super) fn finish(&mut self, pods: &[Pod]) {
        for pod in pods {
            self.folded += pod.index.folded();
            self.eras = self.eras.max(pod.index.eras());
            let open = pod.purges.len();
            if self.violation.is_none() && open > 0 {
                self.violation = Some(format!("{open} purges of {} are not complete in the end: {:?}", pod.id, pod.purges));
            }
        }
    }
}

fn names(what: &What, object: usize) -> bool {
    match what {
        What::Everything => true,
        What::Policy(name) => name.as_str() == Checker::policy(object),
        What::Tag(tag) => tag.as_str() == Checker::tag(object),
        What::Prefix(prefix) => Checker::url(object).starts_with(prefix.as_str()),
        What::Url(url) => url.as_str() == Checker::url(object),
    }
}
