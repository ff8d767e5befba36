//! Two ways into the node's network: the API server on a port of this machine, and any address of the cluster through a
//! Unix socket. A socket belongs to the network namespace that it was made in, and Unix sockets are found by path from anywhere.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const DONE: &str = "connected\n";

/// A connection that the node opened for us.
pub type Stream = UnixStream;

/// Accepts on `listener`, which was made outside, and connects to `target` inside. Runs until the process ends.
pub(super) async fn forward(listener: TcpListener, target: SocketAddr) {
    while let Ok((mut outside, _)) = listener.accept().await {
        tokio::spawn(async move {
            // The API server may not be up yet: the client sees a closed connection and tries again.
            if let Ok(mut inside) = TcpStream::connect(target).await {
                let _ = copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
    }
}

/// Accepts on the Unix socket: each client names an address in one line and gets a connection to it. Runs until the process ends.
pub(super) async fn serve(listener: UnixListener) {
    while let Ok((mut client, _)) = listener.accept().await {
        tokio::spawn(async move {
            match open(&mut client).await {
                Ok(mut inside) => {
                    let _ = copy_bidirectional(&mut client, &mut inside).await;
                }
                Err(error) => {
                    let _ = client.write_all(format!("{error:#}\n").as_bytes()).await;
                }
            }
        });
    }
}

async fn open(client: &mut UnixStream) -> anyhow::Result<TcpStream> {
    let mut line = String::new();
    // One byte at a time, for what follows the line belongs to the connection.
    while !line.ends_with('\n') && line.len() < 64 {
        line.push(char::from(client.read_u8().await?));
    }
    let address: SocketAddr = line.trim().parse().context("expected ADDRESS:PORT")?;
    let inside = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await.context("no answer in time")??;
    client.write_all(DONE.as_bytes()).await?;
    Ok(inside)
}

/// Asks the node behind the Unix socket for a connection to `address`.
pub(super) async fn connect(socket: &Path, address: SocketAddr) -> anyhow::Result<Stream> {
    let stream = UnixStream::connect(socket).await.context("could not reach the node")?;
    let mut reader = BufReader::with_capacity(1, stream);
    reader.get_mut().write_all(format!("{address}\n").as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(2 * CONNECT_DEADLINE, reader.read_line(&mut answer)).await.context("the node did not answer")??;
    if answer != DONE {
        bail!("could not connect to {address} from the node: {}", answer.trim());
    }
    Ok(reader.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_that_follow_the_address_reach_the_target() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("dial.sock");
        tokio::spawn(serve(UnixListener::bind(&socket).unwrap()));
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = connect(&socket, target.local_addr().unwrap()).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let (mut inside, _) = target.accept().await.unwrap();
        let mut got = [0; 5];
        inside.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
    }

    #[tokio::test]
    async fn refused_connection_is_reported_with_its_cause() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("dial.sock");
        tokio::spawn(serve(UnixListener::bind(&socket).unwrap()));
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = connect(&socket, closed).await.unwrap_err().to_string();
        assert!(error.contains("refused"), "{error}");
    }
}
