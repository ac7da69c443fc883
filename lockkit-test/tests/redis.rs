//! A Redis of the test's own, and what its proxy does to connections.

use std::time::Duration;

use lockkit_test::redis::{Fault, Proxy, Server, Settings};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisResult, cmd};

/// A client gives up after this long; nothing is measured by it.
const GIVE_UP: Duration = Duration::from_millis(200);

async fn connect(url: &str) -> MultiplexedConnection {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(GIVE_UP));
    let client = Client::open(url).unwrap();
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .unwrap()
}

async fn count(connection: &mut MultiplexedConnection) -> RedisResult<u64> {
    cmd("INCR").arg("n").query_async(connection).await
}

async fn value(connection: &mut MultiplexedConnection) -> u64 {
    let value: Option<u64> = cmd("GET").arg("n").query_async(connection).await.unwrap();
    value.unwrap_or(0)
}

fn server() -> Server {
    Server::start(&Settings::new()).unwrap()
}

#[tokio::test]
async fn what_is_durable_survives_a_crash_and_nothing_else_does() {
    for durable in [false, true] {
        let server = Server::start(&Settings::new().durable(durable)).unwrap();
        count(&mut connect(&server.url()).await).await.unwrap();
        server.crash().unwrap();
        let left = value(&mut connect(&server.url()).await).await;
        assert_eq!(left, u64::from(durable));
    }
}

#[tokio::test]
async fn a_paused_server_carries_out_what_it_was_sent_when_it_goes_on() {
    let server = server();
    let mut connection = connect(&server.url()).await;
    server.pause().unwrap();
    assert!(count(&mut connection).await.unwrap_err().is_timeout());
    server.resume().unwrap();
    assert_eq!(value(&mut connect(&server.url()).await).await, 1);
}

#[tokio::test]
async fn parameters_arrive() {
    let settings = Settings::new().parameter("requirepass", "a b");
    let server = Server::start(&settings).unwrap();
    let client = Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let refused: RedisResult<()> = cmd("GET").arg("n").query_async(&mut connection).await;
    assert_eq!(refused.unwrap_err().code(), Some("NOAUTH"));
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let error = Server::start(&Settings::new().parameter("maxmemory", "much")).unwrap_err();
    assert!(error.to_string().contains("maxmemory"), "{error}");
}

#[tokio::test]
async fn round_trips_are_counted_and_greetings_are_not() {
    let server = server();
    let proxy = Proxy::start(&server).await;
    let mut connection = connect(&proxy.url()).await;
    for _ in 0..3 {
        count(&mut connection).await.unwrap();
    }
    let piped: (u64, u64) = redis::pipe()
        .cmd("INCR")
        .arg("n")
        .cmd("GET")
        .arg("n")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(piped, (4, 4));
    let (trips, commands) = proxy.take_trips();
    assert_eq!(trips, 4);
    assert_eq!(commands, ["INCR", "INCR", "INCR", "INCR", "GET"]);
}

#[tokio::test]
async fn each_fault_does_what_it_says() {
    let late = Duration::from_millis(20);
    // Whether the client gets its answer, and how often the server has counted in the end.
    for (fault, answer, counted) in [
        (Fault::CutBefore, None, 0),
        (Fault::CutAfter, None, 1),
        (Fault::CutLate(late), None, 1),
        (Fault::Delay(late), Some(1), 1),
        (Fault::Twice, Some(2), 2),
        (Fault::Mute, None, 1),
        (Fault::HalfOpen, None, 0),
        (Fault::Drip, Some(1), 1),
    ] {
        let server = server();
        let proxy = Proxy::start(&server).await;
        let mut connection = connect(&proxy.url()).await;
        proxy.next_of("incr", fault);
        assert_eq!(value(&mut connection).await, 0);
        assert_eq!(count(&mut connection).await.ok(), answer, "{fault:?}");
        let mut direct = connect(&server.url()).await;
        // What is late comes by itself.
        while fault == Fault::CutLate(late) && value(&mut direct).await == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(value(&mut direct).await, counted, "{fault:?}");
        assert_eq!(proxy.faults(), 1);
        let silent = matches!(fault, Fault::Mute | Fault::HalfOpen);
        if silent {
            assert!(count(&mut connection).await.unwrap_err().is_timeout());
        }
        if silent || answer.is_none() {
            proxy.heal();
            count(&mut connection).await.unwrap_err();
            connection = connect(&proxy.url()).await;
        }
        count(&mut connection).await.unwrap();
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_lets_nobody_new_in() {
    let server = server();
    let proxy = Proxy::start(&server).await;
    let mut inside = connect(&proxy.url()).await;
    proxy.refuse(true);
    let client = Client::open(proxy.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap_err();
    count(&mut inside).await.unwrap();
    proxy.cut();
    count(&mut inside).await.unwrap_err();
    proxy.refuse(false);
    count(&mut connect(&proxy.url()).await).await.unwrap();
}

#[tokio::test]
async fn the_same_seed_makes_the_same_choices() {
    let mut courses = Vec::new();
    for seed in [1, 1, 2] {
        let server = server();
        let proxy = Proxy::start(&server).await;
        proxy.at_random(seed, 50, &[Fault::CutBefore, Fault::CutAfter]);
        let mut course = Vec::new();
        for _ in 0..30 {
            course.push(count(&mut connect(&proxy.url()).await).await.is_ok());
        }
        let hits = course.iter().filter(|ok| !**ok).count();
        assert_eq!(proxy.faults(), hits as u64);
        let counted = value(&mut connect(&server.url()).await).await;
        courses.push((course, counted));
    }
    assert_eq!(courses[0], courses[1]);
    assert_ne!(courses[0], courses[2]);
}

#[tokio::test]
async fn pushes_pass_and_answer_nothing() {
    let server = server();
    let proxy = Proxy::start(&server).await;
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let client = Client::open(format!("{}?protocol=resp3", proxy.url())).unwrap();
    let config = AsyncConnectionConfig::new().set_push_sender(sender);
    let mut connection = client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .unwrap();
    connection.subscribe("c").await.unwrap();
    let listeners: u64 = cmd("PUBLISH")
        .arg("c")
        .arg("hello")
        .query_async(&mut connect(&server.url()).await)
        .await
        .unwrap();
    assert_eq!(listeners, 1);
    assert_eq!(count(&mut connection).await.unwrap(), 1);
    while heard.recv().await.unwrap().kind != redis::PushKind::Message {}
}
