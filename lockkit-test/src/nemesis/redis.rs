//! What can happen to a Redis server and to the connections to it.

use std::time::Duration;

use fastrand::Rng;
use tokio::time::sleep;

use super::{Stage, Stroke};
use crate::redis::{Fault, Proxy, Server};

/// How long it leaves the server in peace at most, in milliseconds: a stroke is felt for a while.
const PEACE: u64 = 1500;

/// What befalls commands in a storm: two in a hundred.
const FAULTS: [Fault; 9] = [
    Fault::CutBefore,
    Fault::CutAfter,
    Fault::CutLate(Duration::from_millis(20)),
    Fault::CutLate(Duration::from_millis(400)),
    Fault::Delay(Duration::from_millis(30)),
    Fault::Delay(Duration::from_millis(600)),
    Fault::Twice,
    Fault::Mute,
    Fault::HalfOpen,
];

#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) server: &'a Server,
    pub(super) proxy: &'a Proxy,
    pub(super) forget: bool,
}

impl Target<'_> {
    /// Each kind of stroke once, in an order that is drawn, and so on.
    pub(super) async fn strike(&self, mut rng: Rng, stage: &Stage) {
        let mut deck = Vec::new();
        while stage.goes_on(&mut rng, PEACE).await {
            if deck.is_empty() {
                if self.forget {
                    deck.extend([Stroke::Crash, Stroke::FlushAll, Stroke::FlushAll]);
                } else {
                    deck.extend(&Stroke::OF_REDIS[2..]);
                }
                rng.shuffle(&mut deck);
            }
            let stroke = deck.pop().expect("it is not empty");
            let long = Duration::from_millis(rng.u64(100..=600));
            let seed = rng.u64(..);
            let happens = async {
                self.happens(stroke, long, seed).await;
                1
            };
            stage.stroke(stroke, happens).await;
        }
        self.proxy.heal();
    }

    async fn happens(&self, stroke: Stroke, long: Duration, seed: u64) {
        let Self { server, proxy, .. } = self;
        let ok = "the server does as it is told";
        match stroke {
            Stroke::Crash => {
                server.kill().expect(ok);
                sleep(long).await;
                server.revive().expect(ok);
            }
            Stroke::Freeze => {
                server.pause().expect(ok);
                sleep(long).await;
                server.resume().expect(ok);
            }
            Stroke::FlushScripts => server.tell("SCRIPT FLUSH").await.expect(ok),
            Stroke::FlushAll => server.tell("FLUSHALL").await.expect(ok),
            Stroke::CutOff => {
                proxy.refuse(true);
                proxy.cut();
                sleep(long).await;
                proxy.refuse(false);
            }
            _ => {
                proxy.at_random(seed, 2, &FAULTS);
                sleep(long).await;
                // Whoever is mute or half open by now has to find out by himself.
                proxy.calm();
            }
        }
    }
}
