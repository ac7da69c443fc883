//! Tells those of this process who wait for a lock that it may be free.

use std::collections::HashMap;
use std::sync::Arc;

use lockkit_core::sync::Mutex;
use tokio::sync::watch;

/// A bell for each lock that somebody waits for.
#[derive(Debug, Default)]
pub(super) struct Bells(Mutex<HashMap<String, Bell>>);

#[derive(Debug, Default)]
struct Bell {
    listeners: usize,
    sender: watch::Sender<()>,
}

/// Hears the bell of a lock, also what it has rung while nobody waited.
#[derive(Debug)]
pub(super) struct Ear {
    bells: Arc<Bells>,
    key: String,
    heard: watch::Receiver<()>,
}

impl Bells {
    /// Whatever rings from here on is heard.
    pub(super) fn listen(self: &Arc<Self>, key: &str) -> Ear {
        let mut bells = self.0.lock();
        let bell = bells.entry(key.to_owned()).or_default();
        bell.listeners += 1;
        let heard = bell.sender.subscribe();
        drop(bells);
        Ear {
            bells: Arc::clone(self),
            key: key.to_owned(),
            heard,
        }
    }

    /// A lock may be free.
    pub(super) fn ring(&self, key: &str) {
        let bell = self.0.lock().get(key).map(|bell| bell.sender.clone());
        if let Some(sender) = bell {
            sender.send_modify(|()| {});
        }
    }

    /// Whether nobody listens.
    #[cfg(feature = "postgres")]
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Any lock may be free.
    #[cfg(feature = "postgres")]
    pub(super) fn ring_all(&self) {
        let all: Vec<_> = (self.0.lock().values())
            .map(|bell| bell.sender.clone())
            .collect();
        for sender in all {
            sender.send_modify(|()| {});
        }
    }
}

impl Ear {
    /// Waits until the bell has rung since the last time.
    pub(super) async fn heard(&mut self) {
        // An error would mean that the bell is gone, and it goes after its last ear.
        let _ = self.heard.changed().await;
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let mut gone = None;
        let mut bells = self.bells.0.lock();
        if let Some(bell) = bells.get_mut(&self.key) {
            bell.listeners -= 1;
            if bell.listeners == 0 {
                gone = bells.remove(&self.key);
            }
        }
        drop(bells);
        drop(gone);
    }
}
