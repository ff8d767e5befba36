//! Streams that are open, what each of them is to be told, and commands routed to them.
