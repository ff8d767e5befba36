//! Takes content codings off (RFC 9110, section 8.4.1), within limits.

use std::{
    borrow::Cow,
    io::{self, Read},
};

use crate::{Limits, Reason};

/// Codings that one body may have.
const CODINGS: usize = 4;
/// What a body may grow to whatever its ratio.
const FREE: usize = 64 << 10;
/// The largest window of zstd, as a power of two: 8 MiB, as RFC 9659 has it.
const WINDOW: u32 = 23;

/// A body without its codings, and whether it was cut: what of a cut body can be decoded is its beginning.
pub(crate) fn decode<'a>(body: &'a [u8], codings: &[u8], cut: bool, limits: &Limits) -> Result<Cow<'a, [u8]>, Reason> {
    let mut names: Vec<&[u8]> =
        codings.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()).collect();
    names.retain(|name| !name.eq_ignore_ascii_case(b"identity"));
    if names.len() > CODINGS {
        return Err(Reason::Coding);
    }
    let most = limits.decoded.min(body.len().saturating_mul(limits.ratio).max(FREE));
    let mut decoded = Cow::Borrowed(body);
    for name in names.iter().rev() {
        decoded = Cow::Owned(one(&decoded, name, cut, most)?);
    }
    Ok(decoded)
}

fn one(body: &[u8], coding: &[u8], cut: bool, most: usize) -> Result<Vec<u8>, Reason> {
    let is = |name: &str| coding.eq_ignore_ascii_case(name.as_bytes());
    if body.is_empty() {
        return Ok(Vec::new());
    }
    if is("gzip") || is("x-gzip") {
        read(flate2::read::MultiGzDecoder::new(body), cut, most)
    } else if is("deflate") && body[0] & 15 == 8 {
        read(flate2::read::ZlibDecoder::new(body), cut, most)
    } else if is("deflate") {
        // The standard's is that of zlib; some send the bare one.
        read(flate2::read::DeflateDecoder::new(body), cut, most)
    } else if is("br") {
        read(brotli_decompressor::Decompressor::new(body, 4096), cut, most)
    } else if is("zstd") {
        let mut decoder = zstd::stream::read::Decoder::new(body).map_err(|_| Reason::Undecodable)?;
        decoder.window_log_max(WINDOW).map_err(|_| Reason::Undecodable)?;
        read(decoder, cut, most)
    } else {
        Err(Reason::Coding)
    }
}

fn read(mut from: impl Read, cut: bool, most: usize) -> Result<Vec<u8>, Reason> {
    let mut out = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(out),
            Ok(read) if out.len() + read > most => return Err(Reason::TooLarge),
            Ok(read) => out.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if cut => return Ok(out),
            Err(_) => return Err(Reason::Undecodable),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn bare(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn br(plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        brotli::CompressorWriter::new(&mut out, 4096, 5, 22).write_all(plain).unwrap();
        out
    }

    fn zstd(plain: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(plain, 1).unwrap()
    }

    type Encode = fn(&[u8]) -> Vec<u8>;
    const CODINGS: [(&str, Encode); 5] = [("gzip", gzip), ("deflate", zlib), ("Deflate", bare), ("br", br), ("zstd", zstd)];

    fn plain() -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(7);
        (0..20_000).flat_map(|at| format!("{at} {} ", random.alphanumeric()).into_bytes()).collect()
    }

    #[test]
    fn each_coding_is_taken_off() {
        let plain = plain();
        for (name, encode) in CODINGS {
            let encoded = encode(&plain);
            assert_eq!(decode(&encoded, name.as_bytes(), false, &Limits::default()).unwrap(), plain, "{name}");
            let both = format!("identity, gzip , {name}");
            assert_eq!(decode(&encode(&gzip(&plain)), both.as_bytes(), false, &Limits::default()).unwrap(), plain, "{both}");
        }
    }

    #[test]
    fn what_is_cut_is_decoded_to_the_cut_and_else_not_at_all() {
        let plain = plain();
        for (name, encode) in CODINGS {
            let encoded = encode(&plain);
            let cut = &encoded[..encoded.len() / 2];
            let decoded = decode(cut, name.as_bytes(), true, &Limits::default()).unwrap();
            assert!(plain.starts_with(&decoded), "{name}");
            // zstd makes blocks of 128 KiB of which none is decoded before it is whole.
            assert!(decoded.len() > plain.len() / 4 || name == "zstd", "{name}: {}", decoded.len());
            assert_eq!(decode(cut, name.as_bytes(), false, &Limits::default()), Err(Reason::Undecodable), "{name}");
        }
    }

    #[test]
    fn bombs_and_what_is_unknown_are_refused() {
        for (name, encode) in CODINGS {
            let bomb = encode(&vec![0; 3 << 20]);
            assert_eq!(decode(&bomb, name.as_bytes(), true, &Limits::default()), Err(Reason::TooLarge), "{name}");
            let long = encode(&plain());
            let limits = Limits { decoded: 1000, ..Limits::default() };
            assert_eq!(decode(&long, name.as_bytes(), false, &limits), Err(Reason::TooLarge), "{name}");
            assert_eq!(
                decode(b"no such thing at all", name.as_bytes(), false, &Limits::default()),
                Err(Reason::Undecodable),
                "{name}"
            );
        }
        assert_eq!(decode(b"a", b"compress", false, &Limits::default()), Err(Reason::Coding));
        assert_eq!(decode(b"a", b"gzip,gzip,gzip,gzip,gzip", false, &Limits::default()), Err(Reason::Coding));
    }
}
