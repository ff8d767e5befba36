//! One pod's part: it beats, applies what it reads, and knows until when that is enough.

use super::{
    CutOff, Index, Position, Rules, Uptime, Verdict,
    index::Object,
    log::{Content, Page, Record, Term},
};

/// A pod's place in the log, and its lease.
#[derive(Debug)]
pub(crate) struct Member {
    rules: Rules,
    /// The log that it reads, and up to where it has applied it.
    read: Option<Position>,
    /// When its lease runs out, if it ever had one.
    lease: Option<Uptime>,
    /// The list that it is in, and when it learned of that.
    term: Option<(Term, Uptime)>,
    /// Of the beat under way.
    sent: Option<(u64, Uptime)>,
    beats: u64,
    left: bool,
}

/// A beat to be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Beat {
    number: u64,
    /// Up to where the log is applied: what is acknowledged, and from where to read on.
    pub applied: Option<Position>,
}

/// What follows from an answered beat.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    /// There is more to read, or something new to acknowledge: beat again at once.
    Now,
    /// Nothing new: beat after the interval, or when there is news.
    Rest,
    /// It was the answer to a beat given up before.
    Late,
}

impl Member {
    /// A pod that has read nothing yet, and so is cut off.
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, read: None, lease: None, term: None, sent: None, beats: 0, left: false }
    }

    /// Begins a beat. One that is under way is given up: its answer will be late. `now` must be read before the first byte
    /// is sent, for the lease counts from it.
    pub(crate) fn beat(&mut self, now: Uptime) -> Beat {
        self.beats += 1;
        self.sent = Some((self.beats, now));
        Beat { number: self.beats, applied: self.read }
    }

    /// Takes the answer to a beat. `replicas` have the beat for sure.
    pub(crate) fn answered(&mut self, beat: Beat, page: &Page, replicas: u32, now: Uptime, index: &mut Index) -> Next {
        let Some((_, sent)) = self.sent.take_if(|(number, _)| *number == beat.number) else { return Next::Late };
        if self.read.is_none_or(|read| read.generation != page.generation) {
            let lacks_nothing = !self.is_cut_off(now) && self.read.is_some_and(|read| goes_on(read, page));
            self.begin(page, lacks_nothing, index);
        } else if beat.applied.is_some_and(|applied| page.tail > applied.at) {
            // What followed was trimmed away before it was read.
            index.lost_before(page.tail);
        }
        let read = self.apply(page, index);
        if self.term.is_none_or(|(term, _)| page.term != Some(term)) {
            self.term = page.term.map(|term| (term, now));
        }
        if read < page.last {
            return if page.records.is_empty() { Next::Rest } else { Next::Now };
        }
        if replicas >= self.rules.replicas && !self.left {
            self.lease = self.lease.max(Some(sent + self.rules.lag));
        }
        if beat.applied.is_none_or(|applied| applied.generation != page.generation || applied.at < read) {
            Next::Now
        } else {
            Next::Rest
        }
    }

    /// Goes on in another generation.
    fn begin(&mut self, page: &Page, lacks_nothing: bool, index: &mut Index) {
        index.begin(page.generation, lacks_nothing);
        self.read = Some(Position { generation: page.generation, at: 0 });
        // The start of the generation was trimmed away, and maybe purges after it.
        if let Some(first) = page.records.first()
            && first.position.generation == page.generation
            && !matches!(first.content, Content::Begin(_))
        {
            index.lost_before(first.position.at);
        }
    }

    /// Applies what was read. Returns up to where that is.
    fn apply(&mut self, page: &Page, index: &mut Index) -> u64 {
        for record in &page.records {
            match &record.content {
                Content::Begin(_) => {}
                Content::Purge(entry) => index.apply(record.position, entry),
                Content::Unreadable => index.apply_unreadable(record.position),
            }
        }
        let before = self.read.map_or(0, |read| read.at);
        let at = page.records.last().map_or(before, |record| record.position.at).max(before);
        self.read = Some(Position { generation: page.generation, at });
        index.advance(at);
        at
    }

    /// Gives up the lease for good: the pod answers nothing from now on. Then it may leave the list.
    pub(crate) fn leave(&mut self) {
        self.left = true;
        self.lease = None;
    }

    /// Whether purges may have been completed that the pod doesn't know of.
    pub(crate) fn is_cut_off(&self, now: Uptime) -> bool {
        self.lease.is_none_or(|end| end <= now)
    }

    /// What may be done with an object, at a time read before this is asked.
    pub(crate) fn verdict(&self, index: &Index, object: &Object<'_>, now: Uptime) -> Verdict {
        self.unless_cut_off(index.verdict(object), now)
    }

    /// The verdict of an index that may not know of all purges, at a time read before it was asked.
    pub(crate) fn unless_cut_off(&self, verdict: Verdict, now: Uptime) -> Verdict {
        match self.rules.cut_off {
            CutOff::Revalidate if self.is_cut_off(now) => verdict.max(Verdict::Unknown),
            _ => verdict,
        }
    }

    /// When the lease runs out.
    #[cfg(test)]
    pub(crate) fn lease(&self) -> Option<Uptime> {
        self.lease
    }

    /// The list of members, and since when the pod has known it: what a purge from here relies upon.
    pub(crate) fn term(&self) -> Option<(Term, Uptime)> {
        self.term
    }

    /// The generation that is read.
    #[cfg(test)]
    pub(crate) fn generation(&self) -> Option<super::Generation> {
        self.read.map(|read| read.generation)
    }
}

/// Whether a pod that had read up to `read`, and has a lease, finds in another generation all that it hasn't read. What
/// was lost needn't be there: it can't be complete. What was trimmed away may be.
fn goes_on(read: Position, page: &Page) -> bool {
    let known = |position: &Position| position.generation == read.generation && position.at <= read.at;
    match page.records.first() {
        Some(Record { content: Content::Begin(None), .. }) => true,
        Some(Record { content: Content::Begin(Some(before)), .. }) => known(before),
        Some(record) => known(&record.position),
        None => false,
    }
}

#[cfg(test)]
mod tests;
