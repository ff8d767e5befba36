//! A connection of one user's own, to the primary of a slot. It is made when it is needed, and anew when it broke or when there is another primary.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value, aio::ConnectionLike};
use tokio::time::Instant;

use super::{
    connection::{Connection, step},
    find::{Finder, Trying},
    map::Slot,
    meaning::{self, Meaning},
    settings::Address,
};

/// Who asks bounds how long an exchange may take, and asks again.
pub(crate) struct Link {
    finder: Arc<Finder>,
    slot: Slot,
    /// How long a connection may take.
    patience: Duration,
    held: Option<Held>,
    /// Who has the slot's keys, or will, while it is moved.
    ask: Option<Address>,
}

/// A connection that has answered.
struct Held {
    connection: Connection,
    address: Address,
    asking: bool,
}

impl Link {
    /// Connects to nothing yet. Who asks waits so long, and a connection takes a little less, so that it is known why there is none.
    pub(super) fn new(finder: Arc<Finder>, slot: Slot, patience: Duration) -> Self {
        Self { finder, slot, patience: patience - patience / 8, held: None, ask: None }
    }

    /// The connection, for one exchange. If that is given up, for it takes too long, the next one gets another connection: who does not
    /// answer may have gone without a word.
    async fn take(&mut self) -> RedisResult<Held> {
        if let Some(held) = self.held.take()
            && !held.connection.is_closed()
            && (held.asking || self.finder.is_primary(self.slot, &held.address))
        {
            return Ok(held);
        }
        let until = Instant::now() + self.patience;
        let (address, asking) = match self.ask.take() {
            Some(address) => (address, true),
            None => (step(until, "the primary is not known", self.finder.primary(self.slot)).await?, false),
        };
        let trying = self.finder.trying(&address);
        let connection = self.finder.settings().connect(&address, until).await?;
        trying.went_well();
        Ok(Held { connection, address, asking })
    }

    /// What follows from an answer.
    fn answered(&mut self, held: Held, trying: Trying, meaning: Meaning) {
        match meaning {
            Meaning::Fine => {
                trying.went_well();
                self.held = Some(held);
            }
            Meaning::Ask(address) => {
                trying.went_well();
                self.ask = Some(address);
            }
            Meaning::Moved(_) | Meaning::Doubt | Meaning::LookAgain => {} // and it is doubted
        }
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut held = self.take().await?;
            let trying = self.finder.trying(&held.address);
            let answer = held.connection.one(cmd, held.asking).await;
            let meaning = meaning::of_one(&answer, &held.address);
            self.answered(held, trying, meaning);
            answer
        })
    }

    fn req_packed_commands<'a>(&'a mut self, pipeline: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let mut held = self.take().await?;
            let trying = self.finder.trying(&held.address);
            let answers = held.connection.many(pipeline, offset, count, held.asking).await;
            let meaning = meaning::of_many(&answers, &held.address);
            self.answered(held, trying, meaning);
            answers
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}
