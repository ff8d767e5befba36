//! Why records are dropped.

use std::io;

/// Why a record was dropped.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// The queue in memory is full: records come faster than they are compressed.
    QueueFull,
    /// The folder has its most bytes.
    SpoolFull,
    /// The disk is full.
    NoSpace,
    /// The disk can't be written: it is read-only.
    ReadOnly,
    /// The disk fails.
    DiskFailed,
    /// No data key can be had.
    NoKey,
    /// It is too large, empty, or not one line.
    Refused,
    /// It came after the spool was closed, or was in memory when the time to write it was over.
    Closed,
    /// Its segment's file was taken away by somebody else.
    Missing,
    /// Its segment's name is taken in the store, by something else.
    NameTaken,
    /// Its frame was damaged on the disk before it was stored.
    Damaged,
}

impl Reason {
    /// All of them. The ledger knows them by their places here: new ones come last.
    pub const ALL: [Self; 11] = [
        Self::QueueFull,
        Self::SpoolFull,
        Self::NoSpace,
        Self::ReadOnly,
        Self::DiskFailed,
        Self::NoKey,
        Self::Refused,
        Self::Closed,
        Self::Missing,
        Self::NameTaken,
        Self::Damaged,
    ];

    /// For labels of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queueFull",
            Self::SpoolFull => "spoolFull",
            Self::NoSpace => "noSpace",
            Self::ReadOnly => "readOnly",
            Self::DiskFailed => "diskFailed",
            Self::NoKey => "noKey",
            Self::Refused => "refused",
            Self::Closed => "closed",
            Self::Missing => "missing",
            Self::NameTaken => "nameTaken",
            Self::Damaged => "damaged",
        }
    }

    pub(super) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Self::ReadOnly,
            _ => Self::DiskFailed,
        }
    }
}

/// The record was not taken. It is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the record was dropped: {}", .0.as_str())]
pub struct Dropped(pub Reason);
