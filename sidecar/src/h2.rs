//! HTTP/2 (RFC 9113): what the library leaves to its caller.

use std::{error::Error as _, io};

pub(crate) mod frames;
pub(crate) mod guard;
pub(crate) mod strict;

/// The kind of the socket's error that ended a connection or a stream; none if it ended for another reason.
pub(crate) fn io_kind(error: &hyper::Error) -> Option<io::ErrorKind> {
    let cause = error.source()?;
    let of_library = || cause.downcast_ref::<::h2::Error>()?.get_io();
    cause.downcast_ref::<io::Error>().or_else(of_library).map(io::Error::kind)
}
