//! What an answer says of the server that gave it.

use redis::{ErrorKind, RedisError, RedisResult, Value};

use super::settings::Address;

/// What follows from an answer, or from none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Meaning {
    /// It is the one to ask, whatever it says of the command.
    Fine,
    /// Another node has the slot.
    Moved(Address),
    /// Another node is being given the slot, and has this key of it already, or would.
    Ask(Address),
    /// It may not be the one, but the connection is of use for other commands: look where the primary is.
    Doubt,
    /// It can't serve this, or the connection is of no use: look where the primary is, and connect anew.
    LookAgain,
}

/// Codes of errors by which a server says that it is not, or not yet, the one to ask.
const NOT_THE_ONE: [&str; 4] = ["READONLY", "LOADING", "MASTERDOWN", "NOAUTH"];
/// Codes of errors by which it says so of some commands: it takes no writes without replicas, or its cluster lacks slots.
const NOT_FOR_ALL: [&str; 2] = ["CLUSTERDOWN", "NOREPLICAS"];

/// Codes of errors that whatever writes gets until somebody mends what is wrong: no memory, no right, no disk, no replicas, no slots, a script that does
/// not end.
const OF_ALL: [&str; 7] = ["OOM", "NOPERM", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "BUSY", "WRONGPASS"];

/// Whether an error is not of one command, but would be the answer to the next ones as well.
pub(super) fn is_of_all(code: &str) -> bool {
    OF_ALL.contains(&code)
}

/// Of the answer to a command, asked at an address.
pub(super) fn of_one(answer: &RedisResult<Value>, asked: &Address) -> Meaning {
    match answer {
        Ok(_) => Meaning::Fine,
        Err(error) => of_error(error, asked),
    }
}

/// Of the answers to a pipeline: one of them tells for all.
pub(super) fn of_many(answers: &RedisResult<Vec<Value>>, asked: &Address) -> Meaning {
    let each = |value: &Value| match value {
        Value::ServerError(error) => of_code(error.code(), error.details(), asked),
        _ => Meaning::Fine,
    };
    match answers {
        Ok(values) => values.iter().map(each).find(|meaning| *meaning != Meaning::Fine).unwrap_or(Meaning::Fine),
        Err(error) => of_error(error, asked),
    }
}

fn of_error(error: &RedisError, asked: &Address) -> Meaning {
    if let Some(errors) = error.clone().into_server_errors() {
        let each = errors.iter().map(|(_, error)| of_code(error.code(), error.details(), asked));
        return each.into_iter().find(|meaning| *meaning != Meaning::Fine).unwrap_or(Meaning::Fine);
    }
    match error.kind() {
        // What comes is not what was asked for: nothing is wrong with the connection.
        ErrorKind::UnexpectedReturnType | ErrorKind::Extension | ErrorKind::Server(_) => Meaning::Fine,
        _ => Meaning::LookAgain,
    }
}

fn of_code(code: &str, detail: Option<&str>, asked: &Address) -> Meaning {
    let to = || redirect(detail?, asked);
    match code {
        "MOVED" => to().map_or(Meaning::LookAgain, Meaning::Moved),
        "ASK" => to().map_or(Meaning::LookAgain, Meaning::Ask),
        code if NOT_THE_ONE.contains(&code) => Meaning::LookAgain,
        code if NOT_FOR_ALL.contains(&code) => Meaning::Doubt,
        _ => Meaning::Fine,
    }
}

/// Slot and node, such as `3999 127.0.0.1:6381`; without a host it is that of who says so.
fn redirect(detail: &str, asked: &Address) -> Option<Address> {
    let (host, port) = detail.split_ascii_whitespace().nth(1)?.rsplit_once(':')?;
    let host = if ["", "?"].contains(&host) { &*asked.host } else { host.trim_matches(['[', ']']) };
    port.parse().ok().filter(|port| *port > 0).map(|port| Address::new(host, port))
}

#[cfg(test)]
mod tests {
    use redis::{make_extension_error, parse_redis_value};

    use super::*;

    fn asked() -> Address {
        Address::new("asked", 1)
    }

    fn error(line: &str) -> Value {
        parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap()
    }

    #[test]
    fn codes_of_errors_tell_whether_to_look_again() {
        let to = |host: &str, port| Address::new(host, port);
        for (line, expected) in [
            ("MOVED 3999 127.0.0.1:6381", Meaning::Moved(to("127.0.0.1", 6381))),
            ("MOVED 3999 ::1:6381", Meaning::Moved(to("::1", 6381))),
            ("MOVED 3999 [::1]:6381", Meaning::Moved(to("::1", 6381))),
            ("MOVED 3999 :6381", Meaning::Moved(to("asked", 6381))),
            ("MOVED 3999 node.example:6381", Meaning::Moved(to("node.example", 6381))),
            ("ASK 3999 127.0.0.1:6381", Meaning::Ask(to("127.0.0.1", 6381))),
            ("MOVED", Meaning::LookAgain),
            ("MOVED 3999", Meaning::LookAgain),
            ("MOVED 3999 127.0.0.1:0", Meaning::LookAgain),
            ("ASK 3999 127.0.0.1", Meaning::LookAgain),
            ("READONLY You can't write against a read only replica.", Meaning::LookAgain),
            ("LOADING Redis is loading the dataset in memory", Meaning::LookAgain),
            ("MASTERDOWN Link with MASTER is down", Meaning::LookAgain),
            ("CLUSTERDOWN The cluster is down", Meaning::Doubt),
            ("NOREPLICAS Not enough good replicas to write.", Meaning::Doubt),
            ("NOAUTH Authentication required.", Meaning::LookAgain),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Meaning::Fine),
            ("NOSCRIPT No matching script.", Meaning::Fine),
            ("NOPERM this user has no permissions", Meaning::Fine),
            ("OOM command not allowed when used memory > 'maxmemory'.", Meaning::Fine),
            ("BUSY Redis is busy running a script.", Meaning::Fine),
            ("MISCONF Redis is configured to save RDB snapshots", Meaning::Fine),
            ("FULL this scope has as many members as it can", Meaning::Fine),
            ("ERR unknown command", Meaning::Fine),
        ] {
            assert_eq!(of_one(&error(line).extract_error(), &asked()), expected, "{line}");
            let values = vec![Value::Okay, error("ERR another"), error(line), Value::Nil];
            assert_eq!(of_many(&Ok(values), &asked()), expected, "{line}");
        }
        assert_eq!(of_one(&Ok(Value::Nil), &asked()), Meaning::Fine);
        assert_eq!(of_many(&Ok(vec![Value::Okay]), &asked()), Meaning::Fine);
    }

    #[test]
    fn a_broken_connection_is_made_anew() {
        let io = || RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(of_one(&Err(io()), &asked()), Meaning::LookAgain);
        assert_eq!(of_many(&Err(io()), &asked()), Meaning::LookAgain);
        let refused = RedisError::from((ErrorKind::AuthenticationFailed, "Password authentication failed"));
        assert_eq!(of_one(&Err(refused), &asked()), Meaning::LookAgain);
        assert_eq!(of_one(&Err(make_extension_error("OTHER".to_owned(), None)), &asked()), Meaning::Fine);
    }
}
