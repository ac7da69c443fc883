//! What is refused, and that nothing is sent then.

use lockkit_core::lease::{AcquireError, ExtendError, InputError, LockerError, Owner, Ticket, Ttl};

use super::*;

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test(start_paused = true)]
async fn bad_input_is_refused_by_name_and_nothing_is_sent() {
    let store = store();
    let locker = locker(&store);
    let long = "x".repeat(513);
    let lock = || locker.lock("k");
    let cases = [
        (locker.lock(""), InputError::EmptyKey),
        (locker.lock(&long), InputError::KeyTooLong { got: 513 }),
        (locker.lock("a\0b"), InputError::KeyHasNul),
        (lock().owner(&long), InputError::OwnerTooLong { got: 513 }),
        (lock().owner("\0"), InputError::OwnerHasNul),
        (
            lock().ttl(Duration::ZERO),
            InputError::TtlTooShort {
                got: Duration::ZERO,
            },
        ),
        (lock().ttl(MS * 9), InputError::TtlTooShort { got: MS * 9 }),
        (
            lock().ttl(HOUR * 24 + MS),
            InputError::TtlTooLong {
                got: HOUR * 24 + MS,
            },
        ),
        (
            lock().ttl(Duration::MAX),
            InputError::TtlTooLong { got: Duration::MAX },
        ),
        (
            lock().wait(Duration::MAX),
            InputError::WaitTooLong { got: Duration::MAX },
        ),
        (
            lock().max_hold(Duration::ZERO),
            InputError::MaxHold {
                got: Duration::ZERO,
            },
        ),
        (
            lock().max_hold(Duration::MAX),
            InputError::MaxHold { got: Duration::MAX },
        ),
    ];
    for (request, expected) in cases {
        match request.acquire().await {
            Err(AcquireError::Input(error)) => assert_eq!(error, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    assert_eq!(store.calls(Op::Acquire), 0);
    let guard = locker.lock("x".repeat(512)).acquire().await.unwrap();
    for ttl in [Duration::ZERO, MS * 9, Duration::MAX] {
        assert!(matches!(
            guard.extend(ttl).await,
            Err(ExtendError::Input(_))
        ));
    }
    assert_eq!(store.calls(Op::Extend), 0);
    locker.inspect("").await.unwrap_err();
    assert_eq!(store.calls(Op::Inspect), 0);
}

#[tokio::test(start_paused = true)]
async fn a_locker_is_not_made_of_bad_defaults() {
    let store = store();
    let make = || Locker::builder(store.clone());
    for (builder, expected) in [
        (make().ttl(MS), InputError::TtlTooShort { got: MS }),
        (
            make().wait(Duration::MAX),
            InputError::WaitTooLong { got: Duration::MAX },
        ),
        (
            make().poll(Duration::ZERO),
            InputError::Poll {
                got: Duration::ZERO,
            },
        ),
        (
            make().poll(Duration::MAX),
            InputError::Poll { got: Duration::MAX },
        ),
        (
            make().call_timeout(Duration::ZERO),
            InputError::CallTimeout {
                got: Duration::ZERO,
            },
        ),
        (
            make().call_timeout(Duration::MAX),
            InputError::CallTimeout { got: Duration::MAX },
        ),
        (make().owner("\0"), InputError::OwnerHasNul),
    ] {
        assert_eq!(builder.build().unwrap_err(), LockerError::Input(expected));
    }
}

#[test]
fn limits_are_where_they_are_said_to_be() {
    assert_eq!(Ttl::new(MS * 10).unwrap(), Ttl::MIN);
    assert_eq!(Ttl::new(HOUR * 24).unwrap(), Ttl::MAX);
    assert_eq!(
        Ttl::new(Duration::from_micros(10_999)).unwrap().as_millis(),
        10
    );
    assert!(Ttl::new(Duration::from_nanos(1)).is_err());
    assert!(Key::new("ü".repeat(256)).is_ok() && Key::new("ü".repeat(257)).is_err());
    assert!(Key::new("{tag}\r\n 👍 \u{2028}").is_ok());
    assert!(Owner::new("").is_ok());
}

#[test]
fn the_text_of_a_ticket_is_read_strictly() {
    let token = "0123456789abcdef0123456789abcdef";
    let good = format!("lockkit1:{token}:7:1000:a:b");
    assert_eq!(Ticket::from_text(&good).unwrap().to_text(), good);
    for (text, expected) in [
        (String::new(), InputError::Ticket),
        ("lockkit1".into(), InputError::Ticket),
        (format!("lockkit2:{token}:7:1000:k"), InputError::Ticket),
        (format!("lockkit1:{token}:0:1000:k"), InputError::Ticket),
        (format!("lockkit1:{token}:7:-1:k"), InputError::Ticket),
        (format!("lockkit1:{token}:7:1000"), InputError::Ticket),
        ("lockkit1:abc:7:1000:k".into(), InputError::Ticket),
        (
            format!("lockkit1:{token}:7:9:k"),
            InputError::TtlTooShort { got: MS * 9 },
        ),
        (format!("lockkit1:{token}:7:1000:"), InputError::EmptyKey),
    ] {
        assert_eq!(Ticket::from_text(&text), Err(expected), "{text}");
    }
}
