//! The thread that makes segments of what waits in the queue.
//!
//! While the disk can't be written, a frame and the queue are kept, and it is tried again: an outage that is shorter than what the queue holds
//! costs nothing. Once the queue is full, what is dropped has the reason why nothing can be written.

use std::{
    fs, io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    time::{Duration, Instant},
};

use super::{
    Reason, SegmentId, Sync, ledger, page,
    queue::Item,
    shared::{Shared, Waiting, sync_folder},
};
use crate::segment::{self, Pending, Writer};

/// Bytes of records that are taken from the queue at a time.
const BATCH: usize = 256 << 10;
/// Bytes of what is not segments.
const OWN: u64 = ledger::LENGTH + page::LENGTH as u64;
/// When what failed is tried again.
const AGAIN: Duration = Duration::from_millis(200);

pub(super) fn run(shared: &Shared) {
    let mut maker = Maker { shared, sequence: 0, open: None, frame_since: None, stuck: false };
    loop {
        let work = maker.wait();
        maker.write(&work);
        if let Some(deadline) = work.closing
            && (maker.is_empty() || Instant::now() >= deadline)
        {
            break;
        }
    }
    maker.end();
}

struct Maker<'a> {
    shared: &'a Shared,
    sequence: u64,
    open: Option<Open>,
    /// Since when the oldest record of the next frame waits.
    frame_since: Option<Instant>,
    /// Writing has failed, and is tried again later.
    stuck: bool,
}

/// The open segment.
struct Open {
    id: SegmentId,
    writer: Writer,
    /// Once anything was written.
    file: Option<fs::File>,
    /// What is written before the first frame.
    header: Vec<u8>,
    /// A frame that could not be written yet.
    pending: Option<(Pending, Vec<u8>)>,
    since: Instant,
    /// It is to be closed, and could not be yet.
    full: bool,
}

/// What there is to do.
struct Work {
    /// The rotation that was asked for last.
    rotation: u64,
    rotate: bool,
    closing: Option<Instant>,
}

/// Why a step can't be done now.
struct Stuck(Reason);

impl From<io::Error> for Stuck {
    fn from(error: io::Error) -> Self {
        Self(Reason::of(&error))
    }
}

impl Maker<'_> {
    /// Waits until there is something to do, or it is time to look.
    fn wait(&self) -> Work {
        let settings = &self.shared.settings;
        let tick = (settings.frame_delay.min(settings.max_delay) / 4).clamp(Duration::from_millis(2), Duration::from_millis(250));
        let mut state = self.shared.state();
        let idle = state.queue.bytes() < self.shared.enough() && state.rotations_asked == state.rotations_done;
        if state.closing.is_none() && (idle || self.stuck) {
            state = self.shared.wait(&self.shared.work, state, if self.stuck { AGAIN } else { tick });
        } else if self.stuck {
            // Nothing but time helps.
            state = self.shared.wait(&self.shared.work, state, AGAIN / 10);
        }
        let rotate = state.rotations_asked > state.rotations_done || state.closing.is_some();
        Work { rotation: state.rotations_asked, rotate, closing: state.closing }
    }

    fn is_empty(&self) -> bool {
        self.open.is_none() && self.shared.state().in_memory() == 0
    }

    /// Writes what there is. What fails is noted, and tried again.
    fn write(&mut self, work: &Work) {
        let written = self.try_write(work);
        self.stuck = written.is_err();
        let mut state = self.shared.state();
        match written {
            Ok(()) => {
                state.blocked = None;
                state.rotations_done = state.rotations_done.max(work.rotation);
                self.shared.done.notify_all();
            }
            Err(Stuck(reason)) => {
                state.write_failures += 1;
                state.blocked = Some(reason);
            }
        }
    }

    fn try_write(&mut self, work: &Work) -> Result<(), Stuck> {
        self.flush_pending()?;
        if self.open.as_ref().is_some_and(|open| open.full) {
            self.close()?;
        }
        // What is in the queue now, and not what comes meanwhile: else nothing else would ever be done.
        let mut left = self.shared.state().queue.len();
        while left > 0 {
            let batch = self.batch()?;
            left = left.saturating_sub(batch.len().max(1));
            self.take(batch)?;
        }
        let settings = &self.shared.settings;
        if work.rotate || self.frame_since.is_some_and(|since| since.elapsed() >= settings.frame_delay) {
            self.flush()?;
        }
        let due = |open: &Open| work.rotate || open.full || open.since.elapsed() >= settings.max_delay;
        if self.open.as_ref().is_some_and(due) {
            self.close()?;
        }
        Ok(())
    }

    /// Takes records out of the queue, for a segment that is there.
    fn batch(&mut self) -> Result<Vec<Item>, Stuck> {
        self.opened()?;
        let mut state = self.shared.state();
        let batch = state.queue.take(BATCH);
        state.building.0 += batch.len() as u64;
        state.building.1 += batch.iter().map(|item| item.record.len() as u64 + 1).sum::<u64>();
        Ok(batch)
    }

    /// Puts records into frames. All of them are taken, also if a frame can't be written: it then has more than it should.
    fn take(&mut self, batch: Vec<Item>) -> Result<(), Stuck> {
        let mut failed = Ok(());
        for item in batch {
            let pushed = match self.opened() {
                Ok(open) => open.writer.push(&item.record, &item.facts()).map_err(|_| Stuck(Reason::Refused)),
                Err(stuck) => Err(stuck),
            };
            match pushed {
                Ok(()) => self.frame_since = self.frame_since.or_else(|| Some(Instant::now())),
                Err(Stuck(reason)) => self.shared.drop_built(1, item.record.len() as u64 + 1, reason),
            }
            if failed.is_ok() && self.open.as_ref().is_some_and(|open| open.writer.is_full()) {
                failed = self.flush();
                if failed.is_ok() && self.open.as_ref().is_some_and(|open| open.full) {
                    failed = self.close();
                }
            }
        }
        failed
    }

    /// The open segment; a new one if there is none. Nothing is written for it yet.
    fn opened(&mut self) -> Result<&mut Open, Stuck> {
        if self.open.is_none() {
            let settings = &self.shared.settings;
            let id = segment::random_id().map_err(|_| Stuck(Reason::NoKey))?;
            let mut header = Vec::new();
            let begun = Writer::new(settings.frames, id, (settings.clock)(), settings.keys.as_deref(), &mut header);
            let writer = begun.map_err(|error| {
                Stuck(if matches!(error, segment::Error::Key(_)) { Reason::NoKey } else { Reason::DiskFailed })
            })?;
            self.sequence += 1;
            let id = SegmentId { incarnation: self.shared.incarnation, sequence: self.sequence };
            let open = Open { id, writer, file: None, header, pending: None, since: Instant::now(), full: false };
            self.open = Some(open);
        }
        Ok(self.open.as_mut().expect("it was just made"))
    }

    /// Makes a frame of what was gathered, and writes it.
    fn flush(&mut self) -> Result<(), Stuck> {
        self.flush_pending()?;
        let Some(open) = &mut self.open else { return Ok(()) };
        let mut bytes = Vec::new();
        let (records, raw) = open.writer.gathered();
        match open.writer.frame(&mut bytes) {
            Ok(None) => return Ok(()),
            Ok(Some(frame)) => open.pending = Some((frame, bytes)),
            Err(_) => {
                // Out of memory, as good as: nothing of it is left.
                self.shared.drop_built(records.into(), raw as u64, Reason::DiskFailed);
            }
        }
        self.frame_since = None;
        self.flush_pending()
    }

    /// Writes the frame that was made. It is kept if that fails.
    fn flush_pending(&mut self) -> Result<(), Stuck> {
        let shared = self.shared;
        let Some(open) = &mut self.open else { return Ok(()) };
        let Some((frame, bytes)) = open.pending.take() else { return Ok(()) };
        let written = loop {
            match open.write(shared, &bytes) {
                // Another segment gives way.
                Err(Stuck(Reason::SpoolFull | Reason::NoSpace)) if shared.make_room() => {}
                written => break written,
            }
        };
        if let Err(Stuck(reason)) = written {
            if reason == Reason::SpoolFull && open.never_fits(shared, &bytes) {
                shared.drop_built(frame.records().into(), frame.raw().into(), reason);
                return Ok(());
            }
            open.pending = Some((frame, bytes));
            return Err(Stuck(reason));
        }
        {
            let (records, raw) = (u64::from(frame.records()), u64::from(frame.raw()));
            open.writer.written(frame);
            let mut state = shared.state();
            state.building.0 -= records;
            state.building.1 -= raw;
            state.open = (open.writer.records(), open.writer.position());
        }
        open.full |= open.writer.position() >= shared.settings.segment_bytes || open.writer.is_complete();
        if shared.settings.sync == Sync::EveryFrame {
            open.sync(shared);
        }
        Ok(())
    }

    /// Ends the open segment. One without a frame never was.
    fn close(&mut self) -> Result<(), Stuck> {
        self.flush()?;
        let shared = self.shared;
        let Some(open) = &mut self.open else { return Ok(()) };
        // Also if this fails: nothing more comes into it.
        open.full = true;
        let Some(file) = &open.file else {
            self.open = None;
            return Ok(());
        };
        let (position, mut end) = (open.writer.position(), Vec::new());
        open.writer.finish(&mut end);
        let ended = file.write_all_at(&end, position);
        // Without its end it can be read, too; but not with half of one.
        let length = if ended.is_ok() { position + end.len() as u64 } else { position };
        if ended.is_err() {
            file.set_len(length)?;
        }
        if shared.settings.sync != Sync::Never {
            open.sync(shared);
        }
        let folder = &shared.settings.folder;
        fs::rename(open.id.open_file(folder), open.id.closed_file(folder))?;
        if shared.settings.sync != Sync::Never && sync_folder(folder).is_err() {
            shared.state().sync_failures += 1;
        }
        let waiting = Waiting::new(open.writer.records(), length, open.writer.header().created);
        let mut state = shared.state();
        state.bytes += length - position;
        state.open = (0, 0);
        state.closed.insert(open.id, waiting);
        drop(state);
        self.open = None;
        shared.closed.notify_one();
        Ok(())
    }

    /// What could not be written in time is dropped.
    fn end(mut self) {
        let _ = self.close_as_it_is();
        let mut state = self.shared.state();
        let reason = state.blocked.unwrap_or(Reason::Closed);
        let records = state.in_memory();
        while state.queue.pop().is_some() {}
        state.building = (0, 0);
        self.shared.drop_some(&mut state, records, reason);
        state.ended = true;
        self.shared.done.notify_all();
        self.shared.closed.notify_one();
    }

    /// Closes the segment without what could not be written into it.
    fn close_as_it_is(&mut self) -> Result<(), Stuck> {
        if let Some(open) = &mut self.open {
            open.pending = None;
            open.writer.forget();
        }
        self.close()
    }
}

impl Open {
    /// Whether there would be no room for a frame if all other segments were gone.
    fn never_fits(&self, shared: &Shared, frame: &[u8]) -> bool {
        OWN + self.writer.position() + frame.len() as u64 + self.writer.end_length() > shared.settings.max_bytes
    }

    /// Writes a frame behind those before it, if there is room for it and the end of the file. If that fails, nothing is left of it.
    fn write(&mut self, shared: &Shared, frame: &[u8]) -> Result<(), Stuck> {
        let first = self.file.is_none();
        let header = if first { self.header.len() as u64 } else { 0 };
        let grows = header + frame.len() as u64;
        {
            let mut state = shared.state();
            if state.bytes + grows + self.writer.end_length() > shared.settings.max_bytes {
                return Err(Stuck(Reason::SpoolFull));
            }
            state.bytes += grows;
        }
        let written = self.write_at(shared, frame);
        if written.is_err() {
            if first {
                // It begins anew with the header.
                self.file = None;
                let _ = fs::remove_file(self.id.open_file(&shared.settings.folder));
            }
            shared.state().bytes -= grows;
        }
        Ok(written?)
    }

    fn write_at(&mut self, shared: &Shared, frame: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let path = self.id.open_file(&shared.settings.folder);
                let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
                file.write_all_at(&self.header, 0)?;
                none.insert(file)
            }
        };
        let position = self.writer.position();
        let written = file.write_all_at(frame, position);
        if written.is_err() {
            // What was written of it takes room. If this fails, too, it is written over.
            let _ = file.set_len(position);
        }
        written
    }

    fn sync(&self, shared: &Shared) {
        if self.file.as_ref().is_some_and(|file| file.sync_data().is_err()) {
            shared.state().sync_failures += 1;
        }
    }
}
