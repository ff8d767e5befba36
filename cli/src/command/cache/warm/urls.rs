//! Which URLs are asked for.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use http::Uri;
use sidecar::file::{Piece, url_of};

use crate::{
    command::cache::whole::{self, Came},
    failure::Failure,
};

/// URLs of one file, at most.
const MOST: usize = 1_000_000;
/// Bytes of a line.
const LONGEST_LINE: u64 = 16 << 10;

/// Those that were given, and those in a file; none twice, in their order.
pub(super) fn read(given: &[String], file: Option<&Path>) -> Result<Vec<Uri>, Failure> {
    let mut urls = Urls::default();
    for url in given {
        urls.add(url).map_err(Failure::usage)?;
    }
    match file {
        Some(path) if path == Path::new("-") => urls.of(io::stdin().lock(), "standard input")?,
        Some(path) => {
            let place = path.display().to_string();
            let file = File::open(path).map_err(|e| Failure::new(format!("it can't be read: {e}")).at(&place))?;
            urls.of(BufReader::new(file), &place)?;
        }
        None => {}
    }
    Ok(urls.all)
}

#[derive(Default)]
struct Urls {
    all: Vec<Uri>,
    known: HashSet<String>,
}

impl Urls {
    fn add(&mut self, text: &str) -> Result<(), String> {
        let uri: Uri = text.parse().map_err(|_| format!("{text:?} is not like http://localhost/products"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(format!("{text:?} is not like http://localhost/products"));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("a URL has a user or a password in it; send these in a header field".to_owned());
        }
        if self.all.len() == MOST {
            return Err(format!("there are more than {MOST} URLs"));
        }
        if self.known.insert(text.to_owned()) {
            self.all.push(uri);
        }
        Ok(())
    }

    /// Of a file of answers, or a list.
    fn of(&mut self, mut from: impl BufRead, place: &str) -> Result<(), Failure> {
        let unread = |e: io::Error| Failure::new(format!("it can't be read: {e}")).at(place);
        match from.fill_buf().map_err(unread)?.starts_with(b"FXC") {
            true => self.answers(from, place),
            false => self.lines(from, place),
        }
    }

    fn lines(&mut self, mut from: impl BufRead, place: &str) -> Result<(), Failure> {
        for number in 1.. {
            let mut line = String::new();
            let read = from.by_ref().take(LONGEST_LINE).read_line(&mut line);
            if read.map_err(|e| Failure::new(format!("it can't be read: {e}")).at(format!("{place}:{number}")))? == 0 {
                break;
            }
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                self.add(line).map_err(|why| Failure::new(why).at(format!("{place}:{number}")))?;
            }
        }
        Ok(())
    }

    fn answers(&mut self, from: impl Read, place: &str) -> Result<(), Failure> {
        let wrong = |why: String| Failure::new(why).at(place);
        let read = whole::read(from, wrong, |came| match came {
            Came::Piece(Piece::Record(record)) => match url_of(&record) {
                Some(url) => self.add(&url).map_err(wrong),
                None => Ok(()),
            },
            Came::Bytes(_) | Came::Piece(_) => Ok(()),
        });
        read.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_a_url_a_line_and_remarks() {
        let mut urls = Urls::default();
        urls.of(&b"# top\nhttp://a/b\n\n  http://a/c?d \nhttp://a/b\n"[..], "list").unwrap();
        assert_eq!(urls.all, ["http://a/b", "http://a/c?d"]);
    }

    #[test]
    fn wrong_lines_are_told_with_their_place() {
        for (text, place) in [("http://a/\n/b\n", "list:2"), ("ftp://a/\n", "list:1"), ("http:///b", "list:1"), ("FXC", "list")] {
            let failure = Urls::default().of(text.as_bytes(), "list").unwrap_err();
            let said = failure.render(crate::output::Paint::off());
            assert!(said.contains(&format!("  {place}\n")), "{said}");
        }
    }
}
