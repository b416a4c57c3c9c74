//! What both runtimes must do alike.

use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::pin::pin;
use std::rc::Rc;
use std::thread;

use super::super::descriptor::cut;
use super::*;

/// Runs `what` on each runtime, beside a listening socket of its own.
fn on_both<F: Future>(what: impl Fn(Listener, SocketAddr) -> F) {
    for choice in [DriverChoice::IoUring, DriverChoice::Epoll] {
        let (mut runtime, _report) = Runtime::build(choice).unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        runtime.run(async { what(Listener::new(socket).unwrap(), address).await });
    }
}

/// A connection's both ends.
async fn pair(listener: &Listener, address: SocketAddr) -> (Stream, TcpStream) {
    let client = TcpStream::connect(address).unwrap();
    let (stream, peer) = listener.accept(&Stopper::default()).await.unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    (stream, client)
}

#[test]
fn an_accept_that_begins_after_the_stop_ends_at_once() {
    on_both(async |listener, _address| {
        let stopper = Stopper::default();
        stopper.stop();
        let accepted = pin!(listener.accept(&stopper)).now_or_never();
        assert!(accepted.is_some_and(|accepted| accepted.is_err()));
    });
}

#[test]
fn an_accept_that_waits_ends_with_the_stop() {
    on_both(async |listener, _address| {
        let stopper = Rc::new(Stopper::default());
        let stop = Rc::clone(&stopper);
        spawn(async move { stop.stop() }, || {});
        assert!(listener.accept(&stopper).await.is_err());
    });
}

#[test]
fn what_comes_in_pieces_is_received_in_full_and_then_the_end() {
    on_both(async |listener, address| {
        let (mut stream, mut client) = pair(&listener, address).await;
        let sender = thread::spawn(move || {
            for piece in [&[1; 700][..], &[2; 1400], &[3; 7]] {
                client.write_all(piece).unwrap();
                thread::yield_now();
            }
        });
        let (mut received, mut ended) = (Vec::new(), false);
        while !ended {
            // Just as much as there is, sometimes: nothing may be taken for the end of it.
            let (result, buffer) = stream.receive(Vec::with_capacity(700)).await;
            received.extend(buffer);
            ended = result.unwrap() == 0;
        }
        sender.join().unwrap();
        assert_eq!(received.len(), 2107);
        // And again: the end stays.
        assert_eq!(stream.receive(Vec::with_capacity(9)).await.0.unwrap(), 0);
    });
}

#[test]
fn an_end_that_came_with_the_last_bytes_is_noticed() {
    on_both(async |listener, address| {
        let (mut stream, mut client) = pair(&listener, address).await;
        client.write_all(b"first").unwrap();
        let (result, buffer) = stream.receive(Vec::with_capacity(100)).await;
        assert_eq!((result.unwrap(), &buffer[..]), (5, &b"first"[..]));
        client.write_all(b"last").unwrap();
        drop(client);
        let (result, buffer) = stream.receive(buffer).await;
        assert_eq!((result.unwrap(), &buffer[..]), (4, &b"firstlast"[..]));
        assert_eq!(stream.receive(buffer).await.0.unwrap(), 0);
    });
}

#[test]
fn what_was_received_in_full_is_not_readable() {
    on_both(async |listener, address| {
        let (mut stream, mut client) = pair(&listener, address).await;
        assert!(pin!(stream.readable()).now_or_never().is_none());
        client.write_all(b"four").unwrap();
        stream.readable().await.unwrap();
        let (result, buffer) = stream.receive(Vec::with_capacity(4)).await;
        assert_eq!((result.unwrap(), buffer.len()), (4, 4));
        assert!(pin!(stream.readable()).now_or_never().is_none());
        drop(client);
        stream.readable().await.unwrap();
    });
}

#[test]
fn a_send_that_has_no_room_goes_on_when_there_is_some() {
    const BYTES: usize = 32 * 1024 * 1024;
    on_both(async |listener, address| {
        let (mut stream, mut client) = pair(&listener, address).await;
        let mut buffer = vec![7; BYTES];
        let mut sent = 0;
        loop {
            match stream.send_now(&buffer[sent..]) {
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(sent < BYTES, "the sockets' buffers are smaller");
        let receiver = thread::spawn(move || client.read_to_end(&mut Vec::new()).unwrap());
        while sent < BYTES {
            let (result, returned) = stream.send(buffer, sent).await;
            buffer = returned;
            sent += result.unwrap();
        }
        stream.finish().await.unwrap();
        assert_eq!(receiver.join().unwrap(), BYTES);
    });
}

#[test]
fn a_connection_to_nobody_fails_and_one_to_somebody_works() {
    on_both(async |listener, address| {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        assert!(Stream::connect(nobody.unwrap()).await.is_err());
        let mut out = Stream::connect(address).await.unwrap();
        let (mut inward, _peer) = listener.accept(&Stopper::default()).await.unwrap();
        out.send(b"hello".to_vec(), 0).await.0.unwrap();
        let (_result, buffer) = inward.receive(Vec::with_capacity(16)).await;
        assert_eq!(buffer, b"hello");
        inward.close();
        assert_eq!(out.receive(Vec::with_capacity(16)).await.0.unwrap(), 0);
    });
}

#[test]
fn a_panic_ends_its_task_alone() {
    on_both(async |listener, address| {
        let panicked = Rc::new(Cell::new(false));
        let seen = Rc::clone(&panicked);
        spawn(async { panic!("expected") }, move || seen.set(true));
        let (mut stream, client) = pair(&listener, address).await;
        drop(client);
        // It had its turn before this one waited in vain.
        assert_eq!(stream.receive(Vec::with_capacity(1)).await.0.unwrap(), 0);
        assert!(panicked.get());
    });
}

#[test]
fn what_is_not_done_is_dropped_with_epolls_runtime() {
    let (mut runtime, _report) = Runtime::build(DriverChoice::Epoll).unwrap();
    let alive = Rc::new(());
    let held = Rc::clone(&alive);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut client = runtime.run(async move {
        let listener = Listener::new(socket).unwrap();
        let (mut stream, client) = pair(&listener, address).await;
        let waiting = async move {
            let _never = stream.receive(Vec::with_capacity(16)).await;
            drop(held);
        };
        spawn(waiting, || {});
        // It has its turn while this one waits.
        let _other = pair(&listener, address).await;
        let (mut again, other) = pair(&listener, address).await;
        drop(other);
        again.receive(Vec::with_capacity(1)).await.0.unwrap();
        client
    });
    assert_eq!(Rc::strong_count(&alive), 1);
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "its socket was closed");
}

#[test]
fn a_task_has_room_for_its_future_once() {
    let future = async {
        let large = [1_u8; 1000];
        std::future::ready(()).await;
        std::hint::black_box(large);
    };
    let bytes = size_of_val(&future);
    assert!(size_of_val(&caught(future, || {})) < bytes + 100);
}

#[test]
fn a_doorbell_is_heard_each_time_and_its_end_too() {
    on_both(async |_listener, _address| {
        let (mut outside, inside) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(inside).unwrap();
        let mut buffer = Vec::with_capacity(16);
        for _ in 0..3 {
            outside.write_all(&[1]).unwrap();
            let (rung, returned) = wire.rung(buffer).await;
            assert!(rung);
            buffer = returned;
        }
        drop(outside);
        assert!(!wire.rung(buffer).await.0);
    });
}

/// Closes so that the other side is told that nothing more will be taken either.
fn reset(client: TcpStream) {
    socket2::SockRef::from(&client)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
    drop(client);
}

/// Fills a stream's socket, and gives what else there is to send.
fn fill(stream: &mut Stream) -> Vec<u8> {
    let buffer = vec![7; 1 << 20];
    while stream.send_now(&buffer).is_ok() {}
    buffer
}

#[test]
fn whoever_waits_is_told_of_a_reset() {
    on_both(async |listener, address| {
        let (mut stream, client) = pair(&listener, address).await;
        thread::spawn(|| reset(client));
        assert!(stream.receive(Vec::with_capacity(9)).await.0.is_err());
        let (stream, client) = pair(&listener, address).await;
        thread::spawn(|| reset(client));
        // It may say so or leave it to the receiving.
        let _told: io::Result<()> = stream.readable().await;
        let (mut stream, client) = pair(&listener, address).await;
        let rest = fill(&mut stream);
        thread::spawn(|| reset(client));
        assert!(stream.send(rest, 0).await.0.is_err());
    });
}

#[test]
fn whoever_waits_is_told_that_it_was_cut_off() {
    on_both(async |listener, address| {
        let (mut stream, _client) = pair(&listener, address).await;
        let number = stream.number();
        thread::spawn(move || cut(number));
        assert_eq!(stream.receive(Vec::with_capacity(9)).await.0.unwrap(), 0);
        let (mut stream, _client) = pair(&listener, address).await;
        let (rest, number) = (fill(&mut stream), stream.number());
        thread::spawn(move || cut(number));
        assert!(stream.send(rest, 0).await.0.is_err());
    });
}

#[test]
fn what_comes_after_a_wait_was_given_up_is_received() {
    on_both(async |listener, address| {
        let (mut stream, mut client) = pair(&listener, address).await;
        let given_up = pin!(stream.readable()).now_or_never();
        assert!(given_up.is_none());
        client.write_all(b"later").unwrap();
        stream.readable().await.unwrap();
        let (_result, buffer) = stream.receive(Vec::with_capacity(16)).await;
        assert_eq!(buffer, b"later");
    });
}

#[test]
fn everyone_who_waits_is_accepted() {
    on_both(async |listener, address| {
        let waiting: Vec<_> = (0..3)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let stopper = Stopper::default();
        for client in &waiting {
            let (_stream, peer) = listener.accept(&stopper).await.unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
        }
        let late = thread::spawn(move || TcpStream::connect(address).unwrap());
        listener.accept(&stopper).await.unwrap();
        late.join().unwrap();
    });
}

#[test]
fn an_accept_that_waits_ends_when_its_socket_is_shut_down() {
    for choice in [DriverChoice::IoUring, DriverChoice::Epoll] {
        let (mut runtime, _report) = Runtime::build(choice).unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let elsewhere = socket.try_clone().unwrap();
        let error = runtime.run(async {
            let listener = Listener::new(socket).unwrap();
            thread::spawn(move || rustix::net::shutdown(elsewhere, rustix::net::Shutdown::Both));
            listener.accept(&Stopper::default()).await.err().unwrap()
        });
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{choice:?}");
    }
}

#[test]
fn a_buffer_that_was_just_filled_hides_no_end() {
    on_both(async |listener, address| {
        let (mut stream, mut client) = pair(&listener, address).await;
        client.write_all(b"four").unwrap();
        drop(client);
        let (result, buffer) = stream.receive(Vec::with_capacity(4)).await;
        assert_eq!((result.unwrap(), &buffer[..]), (4, &b"four"[..]));
        assert_eq!(stream.receive(Vec::with_capacity(4)).await.0.unwrap(), 0);
    });
}
