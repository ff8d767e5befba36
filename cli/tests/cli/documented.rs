//! The examples of `docs/caching.md`, as a reader would copy them: the documents are applied, the commands are run by a shell one after the other,
//! and what they print is what the page says, but for numbers. Of `docs/throttling.md` the documents are checked.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    run::Proxy,
    support::{self, FETCHR, Said, run, run_with},
};

const PAGE: &str = include_str!("../../../docs/caching.md");
const THROTTLING: &str = include_str!("../../../docs/throttling.md");

/// How long a command may take to print what the page says; what happens in the background is over by then.
const PATIENCE: Duration = Duration::from_secs(10);

/// A block of the page between fences.
struct Block {
    language: &'static str,
    /// The line of the page that it begins at.
    line: usize,
    text: String,
    /// Whether the line before it says that it isn't run here, and why.
    elsewhere: bool,
}

/// A command of a block, and what it prints.
#[derive(Debug, Eq, PartialEq)]
struct Step {
    command: String,
    prints: String,
}

#[test]
fn documents_of_the_pages_are_valid() {
    for (name, page, least) in [("caching", PAGE, 3), ("throttling", THROTTLING, 1)] {
        let blocks = blocks(page);
        let documents: Vec<_> = blocks.iter().filter(|block| block.language == "yaml").collect();
        assert!(documents.len() >= least, "the page has documents");
        for block in documents {
            let said = run_with(&mut support::command(&["validate", "-f", "-"]), &block.text);
            assert_eq!(said.code, 0, "docs/{name}.md:{}: {said:?}", block.line);
        }
    }
}

#[test]
fn commands_of_the_page_print_what_it_says() {
    let blocks = blocks(PAGE);
    let documents = &blocks.iter().find(|block| block.language == "yaml").expect("the page begins with documents").text;
    let (proxy, policy) = documents.split_once("---\n").expect("a FetchrProxy and a FetchrPolicy");
    let origin = Origin::start();
    let proxy = Proxy::start_with(Path::new(FETCHR), policy, |port| {
        let port = proxy.replacen("port: 8080", &format!("port: {port}"), 1);
        port.replacen("127.0.0.1:8000", &format!("127.0.0.1:{}", origin.0), 1)
    });
    let shell = Shell { proxy: &proxy };
    let mut ran = 0;
    for block in blocks.iter().filter(|block| block.language == "console" && !block.elsewhere) {
        for step in steps(&block.text) {
            shell.follow(&step, block.line);
            ran += 1;
        }
    }
    for block in blocks.iter().filter(|block| block.language == "sh" && !block.elsewhere) {
        let said = shell.run(&block.text);
        assert_eq!(said.code, 0, "docs/caching.md:{}: {said:?}", block.line);
    }
    assert!(ran > 8, "the page teaches by examples: {ran}");
}

/// Where the commands run.
struct Shell<'a> {
    proxy: &'a Proxy,
}

impl Shell<'_> {
    /// Runs a command until it prints what it should.
    fn follow(&self, step: &Step, line: usize) {
        let begun = Instant::now();
        loop {
            let said = self.run(&step.command);
            let (printed, expected) = (pattern(&said.stdout), pattern(&step.prints));
            if printed == expected {
                return;
            }
            let late = begun.elapsed() > PATIENCE;
            assert!(!late, "docs/caching.md:{line}: {}\n{}\n{}\nis not\n{}", step.command, said.stdout, said.stderr, step.prints);
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn run(&self, text: &str) -> Said {
        let text = text.replace("localhost:8080", &format!("localhost:{}", self.proxy.address.port()));
        let admin = self.proxy.port_of("admin").port().to_string();
        let text = text.replace("127.0.0.1:4620", &format!("127.0.0.1:{admin}"));
        let programs = Path::new(FETCHR).parent().expect("it is in a folder").display();
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
        let mut shell = Command::new("sh");
        shell.args(["-c", &text]).env("PATH", path).env("FETCHR_ADMIN_PORT", admin).env("FETCHR_STATE_DIR", self.proxy.state());
        run(shell.current_dir(self.proxy.state()).stdin(Stdio::null()))
    }
}

/// The blocks of a page in order.
fn blocks(page: &'static str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut inside, mut before) = (false, "");
    for (number, line) in page.lines().enumerate() {
        match line.strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(language) => {
                inside = true;
                let elsewhere = before.starts_with("<!-- not run here: ");
                blocks.push(Block { language, line: number + 1, text: String::new(), elsewhere });
            }
            None if inside => {
                let text = &mut blocks.last_mut().expect("one has begun").text;
                text.push_str(line);
                text.push('\n');
            }
            None => before = line,
        }
    }
    assert!(!inside, "a block has no end");
    blocks
}

/// The commands of a block: lines behind `$ `, of which one that ends with `\` goes on. What follows is what it prints.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut goes_on = false;
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.to_owned(), prints: String::new() });
        } else {
            let step = steps.last_mut().expect("a block begins with a command");
            let text = if goes_on { &mut step.command } else { &mut step.prints };
            text.push_str(if goes_on { "\n" } else { "" });
            text.push_str(line);
            text.push_str(if goes_on { "" } else { "\n" });
        }
        goes_on = steps.last().is_some_and(|step| step.prints.is_empty() && step.command.ends_with('\\'));
    }
    steps
}

/// What a text is but for numbers, with their units and signs, and the width of columns.
fn pattern(text: &str) -> Vec<String> {
    let word = |word: &str| {
        // Behind a number with a space.
        let word = if word == "ms" { "us" } else { word };
        let mut out = String::new();
        let mut rest = word;
        while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
            let (before, number) = rest.split_at(at);
            out.push_str(before.strip_suffix('-').unwrap_or(before));
            out.push('#');
            rest = number.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
            let unit = ["Ki", "Mi", "Gi", "ms", "s", "m", "h", "d"].into_iter().find(|unit| {
                rest.strip_prefix(unit).is_some_and(|behind| !behind.starts_with(|c: char| c.is_ascii_alphanumeric()))
            });
            rest = &rest[unit.map_or(0, str::len)..];
        }
        out + rest
    };
    text.lines()
        .map(|line| line.split_whitespace().map(word).collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty())
        .collect()
}

/// An application like `python3 -m http.server`: it says when a file was changed, and nothing of caches.
struct Origin(u16);

impl Origin {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || serve(&stream));
            }
        });
        Self(port)
    }
}

fn serve(stream: &TcpStream) {
    let lines: Vec<_> = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let has = |name: &str| lines.iter().any(|line| line.to_ascii_lowercase().starts_with(name));
    let (status, body) = match lines.first() {
        _ if has("if-modified-since:") => ("304 Not Modified", ""),
        Some(line) if line.starts_with("POST") => ("501 Unsupported method", "none\n"),
        Some(line) if line.contains(" /products/1") => ("200 OK", "tea\n"),
        _ => ("404 Not Found", "none\n"),
    };
    let fields = "last-modified: Sat, 28 Nov 2026 10:00:00 GMT\r\ncontent-type: text/plain";
    let length = if status.starts_with("304") { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    // A client that went away is none of its business.
    let _ = { stream }.write_all(format!("HTTP/1.1 {status}\r\n{fields}\r\n{length}connection: close\r\n\r\n{body}").as_bytes());
}

#[test]
fn blocks_and_steps_are_what_a_reader_sees() {
    let page = "a\n```sh\nx\n```\n<!-- not run here: why -->\n```console\n$ a \\\n  b\n1\n2\n$ c\n```\n";
    let blocks = blocks(page);
    let of = |block: &Block| (block.language, block.line, block.elsewhere);
    assert_eq!(blocks.iter().map(of).collect::<Vec<_>>(), [("sh", 2, false), ("console", 6, true)]);
    let step = |command: &str, prints: &str| Step { command: command.to_owned(), prints: prints.to_owned() };
    assert_eq!(steps(&blocks[1].text), [step("a \\\n  b", "1\n2\n"), step("c", "")]);
}

#[test]
fn patterns_leave_out_numbers_alone() {
    for (one, other, same) in [
        ("hit; ttl=59", "hit; ttl=-1", true),
        ("A   1.2Ki  3m\n\n", "A 7 12ms\r\n", true),
        ("31 us", "1 ms", true),
        ("hit; ttl=59", "hit; ttl=59; detail=Expired", false),
        ("1 answers", "2 answer", false),
        ("products/1", "product/1", false),
        ("", "a", false),
    ] {
        assert_eq!(pattern(one) == pattern(other), same, "{one:?} {other:?}");
    }
}
