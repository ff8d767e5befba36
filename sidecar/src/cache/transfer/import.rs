//! What comes in.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read,
    ops::AddAssign,
};

use crds::policy::{Direction, Mode};
use serde::{Deserialize, Serialize};

use super::{OVERHEAD, SpoolError, vary_of};
use crate::{
    cache::{
        Cache, Caching,
        changes::{Moment, Spot},
        file::{LONGEST, Piece, Reader},
        key::Target,
        notes::{self, Names},
        purge::Stamp,
        record::{self, Answer, Record, Unreadable},
        semantics::{
            clock::Now,
            meta::{Flags, Meta},
        },
        standing::Standing,
        store::{Found, Object, Store, Vary},
    },
    config::Config,
};

/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;

/// What became of a file's answers.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    /// Whether nothing was stored, but only looked at.
    pub dry_run: bool,
    /// How many answers the file has.
    pub answers: u64,
    /// How many of them are stored now.
    pub imported: u64,
    /// Of these, how many the origin is asked about before they are used: nobody can know whether they were purged.
    pub to_validate: u64,
    /// Bytes of the bodies of those that are stored.
    pub body_bytes: u64,
    /// How many are not, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<Skipped, u64>,
}

/// Why an answer is not taken.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Skipped {
    /// It is of no use any more.
    Expired,
    /// It was purged since its fetch began.
    Purged,
    /// Nobody can know whether it was purged, and it has no validator by which the origin could be asked.
    Unverifiable,
    /// It is longer than its rule, or the cache, lets it be.
    TooLarge,
    /// The rule that had it stored is not in force, or keeps nothing.
    NoSuchRule,
    /// It can't be read.
    Damaged,
    /// The cache is full.
    NoRoom,
    /// The cache has one that is as new.
    Newer,
}

impl Skipped {
    /// For metrics.
    pub(in crate::cache) const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "Expired",
            Self::Purged => "Purged",
            Self::Unverifiable => "Unverifiable",
            Self::TooLarge => "TooLarge",
            Self::NoSuchRule => "NoSuchRule",
            Self::Damaged => "Damaged",
            Self::NoRoom => "NoRoom",
            Self::Newer => "Newer",
        }
    }
}

/// Whether an import goes on; it may wait before it says so.
pub(in crate::cache) type Pace<'a> = &'a mut dyn FnMut() -> bool;

/// Takes answers from files, by the rules in force.
pub(in crate::cache) struct Import<'a> {
    cache: &'a Cache,
    rules: HashMap<&'a str, &'a Caching>,
    dry_run: bool,
    done: Imported,
}

/// What is stored, and whether it has to be validated.
struct Taken {
    to_validate: bool,
    body: u64,
}

impl<'a> Import<'a> {
    pub(in crate::cache) fn new(cache: &'a Cache, config: &'a Config, dry_run: bool) -> Self {
        let all = [Direction::Inbound, Direction::Outbound].into_iter().flat_map(|direction| config.routes(direction).caches());
        let rules = all.filter(|caching| caching.mode == Mode::Enforce).map(|caching| (&*caching.label, caching)).collect();
        Self { cache, rules, dry_run, done: Imported { dry_run, ..Imported::default() } }
    }

    /// Takes what a file holds, which was found to be whole. Not for a thread that serves requests.
    pub(in crate::cache) fn file(mut self, mut file: File, pace: Pace<'_>) -> Result<Imported, SpoolError> {
        let (mut reader, mut piece) = (Reader::new(longest(self.cache)), vec![0; PIECE]);
        loop {
            let read = file.read(&mut piece).map_err(SpoolError::Io)?;
            if read == 0 {
                reader.finish()?;
                return Ok(self.done);
            }
            reader.push(&piece[..read]);
            while let Some(piece) = reader.read()? {
                if !pace() {
                    return Ok(self.done);
                }
                self.piece(&piece);
            }
        }
    }

    fn piece(&mut self, piece: &Piece) {
        let taken = match piece {
            Piece::Begun(_) | Piece::End(_) => return,
            Piece::TooLong(_) => Err(Skipped::TooLarge),
            Piece::Record(record) => match record::read(record, longest(self.cache)) {
                Ok(Record::Answer(answer)) => self.answer(*answer),
                Ok(Record::Vary { .. }) | Err(Unreadable::Corrupt) => Err(Skipped::Damaged),
                Err(Unreadable::TooLong) => Err(Skipped::TooLarge),
            },
        };
        self.done.answers += 1;
        match taken {
            Ok(Taken { to_validate, body }) => {
                self.done.imported += 1;
                self.done.to_validate += u64::from(to_validate);
                self.done.body_bytes += body;
            }
            Err(why) => self.done.skipped.entry(why).or_default().add_assign(1),
        }
    }

    fn answer(&self, Answer { object, meta, position, tags }: Answer) -> Result<Taken, Skipped> {
        let (purges, now) = (&self.cache.purges, self.cache.now());
        let target = Target::of(object.primary());
        let caching = self.rules.get(&*target.rule).filter(|_| !target.shadow).ok_or(Skipped::NoSuchRule)?;
        if meta.has_died(now) {
            return Err(Skipped::Expired);
        }
        let vary = vary_of(&object).map_err(|()| Skipped::Damaged)?;
        if object.body_len() > caching.settings.max_object {
            return Err(Skipped::TooLarge);
        }
        // Before it is judged: a change that comes meanwhile counts as after it.
        let (spot, began) = (self.cache.changes.spot(object.primary()), self.cache.changes.now());
        let (meta, stamp) = self.standing(meta.revived(now), purges.known_at(position), spot);
        let names = Names { names: caching.names(purges.naming(), &tags), tags };
        let object = object.with_notes(&notes::write(&meta, stamp, &names)).map_err(|_| Skipped::TooLarge)?;
        let kept = match Standing::of(&object, purges, now) {
            Standing::Kept(kept) => kept,
            Standing::Purged => return Err(Skipped::Purged),
            Standing::Dead => return Err(Skipped::Expired),
        };
        let to_validate = kept.flags.any(Flags::INVALID);
        if to_validate && !kept.flags.any(Flags::VALIDATOR) {
            return Err(Skipped::Unverifiable);
        }
        let body = object.body_len();
        self.store(object, vary.as_ref(), (spot, began), now)?;
        Ok(Taken { to_validate, body })
    }

    /// What it is judged by here. If it can't be known what was purged since its fetch began, or its target was changed by a request, it is
    /// validated first; and what was purged here counts as purged after it.
    fn standing(&self, meta: Meta, stamp: Option<Stamp>, spot: Spot) -> (Meta, Stamp) {
        let changed = self.cache.changes.newest(spot) > Moment::default();
        let meta = if changed || stamp.is_none() { meta.invalidated() } else { meta };
        (meta, stamp.unwrap_or_default())
    }

    /// Stores it, unless something would have to leave for it, or something newer is there.
    fn store(&self, object: Object, vary: Option<&Vary>, (spot, began): (Spot, Moment), now: Now) -> Result<(), Skipped> {
        let cache = self.cache;
        let store = cache.store();
        if !store.may_hold(&object) {
            return Err(Skipped::TooLarge);
        }
        if is_behind(cache, &store, &object, vary, now) {
            return Err(Skipped::Newer);
        }
        if !store.has_room(&object) {
            return Err(Skipped::NoRoom);
        }
        if self.dry_run {
            return Ok(());
        }
        let stored = cache.changes.unless_changed(spot, began, || store.insert(object, vary));
        stored.ok_or(Skipped::Newer)?.map_err(|_| Skipped::NoRoom)
    }
}

/// Whether what is stored under the key is as new, or tells variants apart in another way.
fn is_behind(cache: &Cache, store: &Store, object: &Object, vary: Option<&Vary>, now: Now) -> bool {
    let key = store.key(object.primary());
    let found = match store.peek(&key) {
        Some(Found::Vary(names)) if vary != Some(&names) => return true,
        Some(Found::Vary(_)) => store.peek(&store.variant(&key, object.variant())),
        found => found,
    };
    let Some(Found::Object(stored)) = found else { return false };
    match (Standing::of(&stored, &cache.purges, now), notes::read(object)) {
        (Standing::Kept(stored), Some(meta)) => stored.date >= meta.date && !stored.flags.any(Flags::INVALID),
        _ => false,
    }
}

/// Bytes of the longest answer that the cache could take.
pub(super) fn longest(cache: &Cache) -> usize {
    usize::try_from(cache.size() / 4 + OVERHEAD).map_or(LONGEST, |longest| longest.min(LONGEST))
}
