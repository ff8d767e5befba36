//! A server that speaks first, as those of mail and of some databases do, and a client that waits for it.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What it says.
pub const GREETING: &str = "220 ready\r\n";

const DEADLINE: Duration = Duration::from_secs(10);

/// What a client heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The first words.
    pub greeting: String,
    /// From the try to connect to the greeting.
    pub milliseconds: u64,
}

/// Greets each client, and waits until it leaves.
///
/// # Errors
/// The address can't be listened on.
pub async fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (mut client, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A client that leaves has nobody to tell.
            let _ = client.write_all(GREETING.as_bytes()).await;
            let _ = client.read_u8().await;
        });
    }
}

/// Waits in silence for what the other side says.
///
/// # Errors
/// It said nothing in time.
pub async fn hear(address: &str) -> anyhow::Result<Heard> {
    let begun = Instant::now();
    let greeted = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut greeting = vec![0; GREETING.len()];
        stream.read_exact(&mut greeting).await?;
        anyhow::Ok(String::from_utf8_lossy(&greeting).into_owned())
    };
    let greeting = tokio::time::timeout(DEADLINE, greeted).await.with_context(|| format!("{address} is silent"))??;
    Ok(Heard { greeting, milliseconds: u64::try_from(begun.elapsed().as_millis())? })
}
