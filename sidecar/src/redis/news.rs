//! What is published on a channel.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use redis::{
    Value,
    aio::{PubSubSink, PubSubStream},
};
use tokio::time::{Instant, sleep, timeout};

use super::{find::Finder, jittered, map::Slot, settings::Address};

/// Between two tries to subscribe, at first and at most.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Without a message, after which a subscription is asked whether it is still there.
const QUIET: Duration = Duration::from_secs(10);

/// A channel that is listened to.
pub(super) type Subscription = (PubSubSink, PubSubStream);

/// Hears of what is published on a channel, for ever, at the primary of a slot; also when there may have been something that wasn't heard.
pub(super) async fn hear(finder: &Arc<Finder>, slot: Slot, channel: &str, patience: Duration, news: impl Fn()) {
    let mut retry = FIRST_RETRY;
    loop {
        if let Ok(Some((address, mut subscription))) =
            timeout(patience, subscribe(finder, slot, channel, Instant::now() + patience)).await
        {
            retry = FIRST_RETRY;
            // What was published before.
            news();
            let listening = async {
                while next(&mut subscription, patience).await {
                    news();
                }
                finder.doubt(&address);
            };
            tokio::select! {
                () = listening => {}
                () = replaced(finder, slot, &address) => continue,
            }
        }
        sleep(jittered(retry)).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

async fn subscribe(finder: &Arc<Finder>, slot: Slot, channel: &str, until: Instant) -> Option<(Address, Subscription)> {
    let address = finder.primary(slot).await.ok()?;
    let trying = finder.trying(&address);
    let settings = finder.settings();
    let subscription = settings.subscribe(&address, &settings.user, channel, until).await.ok()?;
    trying.went_well();
    Some((address, subscription))
}

/// Waits until another one is the primary of a slot.
async fn replaced(finder: &Finder, slot: Slot, address: &Address) {
    let mut known = finder.subscribe();
    // The finder lives as long as this.
    let _ = known.wait_for(|known| known.map.at(slot) != Some(address)).await;
}

/// Waits for a message. False if the connection has gone, which one that is only quiet must deny.
pub(super) async fn next((sink, messages): &mut Subscription, patience: Duration) -> bool {
    loop {
        match timeout(QUIET, messages.next()).await {
            Ok(message) => return message.is_some(),
            Err(_) => {
                if !matches!(timeout(patience, sink.ping::<Value>()).await, Ok(Ok(_))) {
                    return false;
                }
            }
        }
    }
}
