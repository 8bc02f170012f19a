//! What handlers share: the backend, the settings, the runtime, and the read that waits.

use crate::backend::{Backend, BackendError, ReadReply, ReadRequest};
use crate::call::{Call, Description, Failure, JSON, Reply};
use crate::config::HttpConfig;
use crate::errors::Fault;
use crate::filter::{Filter, Schema};
use crate::json::Translation;
use crate::params::{Params, ReadOptions};
use crate::renderings::Renderings;
use futures::future::{Either, select};
use http::StatusCode;
use quorate_rt::{Rng, Rt};
use quorate_store::{Answer, Query};
use quorate_types::ModifyIndex;
use rand_core::Rng as _;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Something that happens once, and all who wait for it.
#[derive(Debug, Default)]
pub struct Once {
    happened: AtomicBool,
    notify: Notify,
}

impl Once {
    pub fn set(&self) {
        self.happened.store(true, Ordering::SeqCst);
        self.notify.notify_waiters();
    }
    pub fn is_set(&self) -> bool {
        self.happened.load(Ordering::SeqCst)
    }
    pub async fn wait(&self) {
        // Asked to be notified before looking: a `set` between the two is not missed.
        let notified = self.notify.notified();
        if !self.is_set() {
            notified.await;
        }
    }
}

/// Shared by all handlers. Cheap to clone.
#[derive(Debug)]
pub struct Api<R, B> {
    shared: Arc<Shared<R, B>>,
}

impl<R, B> Clone for Api<R, B> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

#[derive(Debug)]
struct Shared<R, B> {
    rt: R,
    backend: B,
    config: HttpConfig,
    local_datacenter: String,
    jitter: Mutex<Rng>,
    stopping: Once,
    renderings: Renderings,
}

impl<R: Rt, B: Backend> Api<R, B> {
    pub fn new(rt: R, config: HttpConfig, backend: B) -> Self {
        let jitter = Mutex::new(rt.rng("http-wait-jitter"));
        let local_datacenter = backend.datacenter();
        Self {
            shared: Arc::new(Shared {
                rt,
                backend,
                config,
                local_datacenter,
                jitter,
                stopping: Once::default(),
                renderings: Renderings::default(),
            }),
        }
    }
    pub fn rt(&self) -> &R {
        &self.shared.rt
    }
    pub fn backend(&self) -> &B {
        &self.shared.backend
    }
    pub fn config(&self) -> &HttpConfig {
        &self.shared.config
    }
    pub fn local_datacenter(&self) -> &str {
        &self.shared.local_datacenter
    }
    /// The datacenter a request is for; `None` is our own, whether named or not.
    pub fn foreign<'a>(&self, named: Option<&'a str>) -> Option<&'a str> {
        named.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(self.local_datacenter()))
    }
    pub fn translation(&self) -> Translation<'_> {
        Translation {
            enabled: self.config().translate_wan_addrs,
            local_datacenter: self.local_datacenter(),
        }
    }
    /// The reply to a read whose body depends on the answer and the request alone: whoever is given the same answer and asked
    /// in the same words is given the same bytes. Not for `near`, which asks for coordinates as well.
    pub fn rendered(&self, call: &Call, answer: &Arc<Answer>, endpoint: &str, encode: impl FnOnce() -> Reply) -> Reply {
        assert!(!call.params.has("near"), "such a body depends on more than the answer");
        let form = format!("{endpoint} {} {}", call.pretty, call.params.form());
        let body = self.shared.renderings.once(answer, form, || encode().body);
        Reply::new(StatusCode::OK, Some(JSON), body)
    }
    /// Bodies that were encoded for several readers at a time, and those that were given again, since the start.
    pub fn rendering_counts(&self) -> (u64, u64) {
        self.shared.renderings.counts()
    }
    /// Set when the server begins to stop: requests that wait are answered as things are.
    pub fn stopping(&self) -> &Once {
        &self.shared.stopping
    }

    /// Spreads the ends of waits that began together: up to a sixteenth more.
    pub fn jittered(&self, wait: Duration) -> Duration {
        let span = u64::try_from((wait / 16).as_nanos()).unwrap_or(u64::MAX);
        let mut jitter = self.shared.jitter.lock().unwrap_or_else(PoisonError::into_inner);
        // The bias of the modulo is below 2^-20 for every wait that is granted.
        wait + Duration::from_nanos(jitter.next_u64() % span.saturating_add(1))
    }

    /// Reads replicated state, waiting when asked to, but not beyond the server's stop.
    pub async fn read(&self, params: &Params, query: Query, options: &ReadOptions) -> Result<ReadReply, BackendError> {
        let blocking = options.min_index > ModifyIndex::ZERO;
        let request = ReadRequest {
            query,
            consistency: options.consistency,
            min_index: options.min_index,
            wait: if blocking {
                self.jittered(options.wait)
            } else {
                Duration::ZERO
            },
            max_stale: options.max_stale,
        };
        let datacenter = self.foreign(params.datacenter());
        if !blocking {
            return self.backend().read(datacenter, request).await;
        }
        let at_once = ReadRequest {
            min_index: ModifyIndex::ZERO,
            wait: Duration::ZERO,
            ..request.clone()
        };
        {
            let read = pin!(self.backend().read(datacenter, request));
            let stopping = pin!(self.stopping().wait());
            if let Either::Left((reply, _)) = select(read, stopping).await {
                return reply;
            }
        }
        self.backend().read(datacenter, at_once).await
    }

    /// A read of catalog or health: its failures are described as its answers are.
    pub async fn discover(&self, call: &Call, query: Query, options: &ReadOptions) -> Result<ReadReply, Failure> {
        self.read(&call.params, query, options)
            .await
            .map_err(Failure::described)
    }
}

impl ReadReply {
    pub(crate) fn description(&self) -> Description {
        assert!(self.index > ModifyIndex::ZERO, "an answer has an index above 0");
        Description {
            index: self.index.0,
            known_leader: self.known_leader,
            last_contact: self.last_contact,
        }
    }
}

/// `?filter=`, when there is one.
pub fn filter(params: &Params, schema: &'static Schema) -> Result<Option<Filter>, Fault> {
    match params.get("filter") {
        "" => Ok(None),
        text => Filter::parse(text, schema).map(Some).map_err(Fault::Filter),
    }
}
