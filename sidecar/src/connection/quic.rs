//! A connection of QUIC, which speaks HTTP/3.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Instant as StdInstant};

use crds::policy::Direction;
use quinn::{ConnectionError, Incoming};
use tokio::time::timeout;

use super::{Arrival, Connection};
use crate::{
    contain::contained,
    fields::Forwarding,
    h3,
    io::Progress,
    tls::{HANDSHAKE, SHED, Turns},
    worker::Worker,
};

/// Serves a connection to its end; `shaking` goes when its handshake is over. A panic ends this connection only.
pub(crate) async fn serve(worker: Rc<Worker>, incoming: Box<Incoming>, shaking: Arc<()>, arrival: Arrival) {
    let Arrival { peer, direction, entry, held, .. } = arrival;
    let connection = Rc::new(Connection {
        worker,
        peer,
        direction,
        entry,
        scheme: "https",
        alternative: None,
        progress: Progress::default(),
        ended: Cell::new(StdInstant::now()),
        authority: Default::default(),
        forwarding: Forwarding::of("https", (direction == Direction::Inbound).then_some(peer.ip())),
        timer: Rc::default(),
        _held: held,
    });
    let served = async {
        let worker = &connection.worker;
        let shaken = tokio::select! {
            biased;
            shaken = shake(*incoming, &worker.turns) => shaken,
            () = worker.drain.closing(direction) => return,
        };
        drop(shaking);
        match shaken {
            Ok(quic) => {
                worker.tls.handshake("client", "full");
                h3::serve(Rc::clone(&connection), quic).await;
            }
            Err(SHED) => {
                worker.tls.handshake("client", "shed");
                worker.metrics.drop_counted(direction, SHED);
            }
            Err(result) => {
                worker.tls.handshake("client", result);
                match result {
                    "broken_off" => {}
                    "timeout" => connection.error("tls_handshake_timeout"),
                    _ => connection.error("tls_handshake_failed"),
                }
            }
        }
    };
    contained(&connection.worker.metrics.panics, served).await;
}

/// Shakes hands, in time and in turn; the error says how that ended.
async fn shake(incoming: Incoming, turns: &Turns) -> Result<quinn::Connection, &'static str> {
    let shaken = async {
        let Some(turn) = turns.take().await else {
            incoming.refuse();
            return Err(SHED);
        };
        let connecting = incoming.accept(); // what costs is done when this returns
        drop(turn);
        connecting.map_err(|error| failure(&error))?.await.map_err(|error| failure(&error))
    };
    timeout(HANDSHAKE, shaken).await.unwrap_or(Err("timeout"))
}

fn failure(error: &ConnectionError) -> &'static str {
    tracing::debug!(%error, "A handshake over QUIC failed.");
    match error {
        ConnectionError::TimedOut => "timeout",
        ConnectionError::TransportError(_) | ConnectionError::ConnectionClosed(_) => "protocol_error",
        _ => "broken_off",
    }
}
