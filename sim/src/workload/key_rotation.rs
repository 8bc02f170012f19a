//! An operator who changes the gossip key again and again: installs a new one, lets all use it, removes the old one, each step
//! at some agent and repeated until it was done everywhere.
//!
//! Check, after each rotation: every member has the new key only (`one_keyring`).

use crate::invariant::keyring;
use crate::scenario::KeyRotation;
use crate::story::Story;
use crate::wire::{Failure, Wire};
use hyper::Method;
use quorate_rt::{Rng, Rt as _, Task};
use rand_core::Rng as _;
use serde_json::{Value, json};
use std::time::Duration;

const PATH: &str = "/v1/operator/keyring";
/// An operator looks at an error before trying again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

#[derive(Clone)]
pub struct Operator {
    story: Story,
    wire: Wire,
    settings: KeyRotation,
    position: usize,
}

impl Operator {
    pub fn new(story: &Story, wire: &Wire, settings: &KeyRotation, position: usize) -> Self {
        Self {
            story: story.clone(),
            wire: wire.clone(),
            settings: settings.clone(),
            position,
        }
    }
    pub fn start(&self, rt: &crate::rt::SimRt) -> Task {
        rt.spawn("workload.key_rotation", self.clone().run())
    }

    async fn run(self) {
        let mut rng = self.story.world.scenario_rng(&format!("workload.{}", self.position));
        let mut old = self.settings.first.clone();
        let until = self
            .settings
            .until_ms
            .map(|until| Duration::from_millis(until.draw(&mut rng)));
        loop {
            let pause = self.settings.pause_ms.draw(&mut rng);
            self.story.world.advance(Duration::from_millis(pause)).await;
            let start = self.story.moment("start").unwrap_or_default();
            if until.is_some_and(|until| self.story.world.elapsed() >= start + until) {
                return;
            }
            let new = new_key(&mut rng);
            for (method, key) in [(Method::POST, &new), (Method::PUT, &new), (Method::DELETE, &old)] {
                if !self.repeat(&method, key, &mut rng).await {
                    return;
                }
            }
            let agent = self.agent(&mut rng);
            if let Ok(answer) = self.wire.json(&agent, &format!("{PATH}?local-only=true")).await {
                let member_count = self.story.names().count();
                let judged = keyring::check(&answer, &new, member_count);
                self.story.holds("one_keyring", judged);
                self.story.count("keyring.rotated");
            }
            old = new;
        }
    }

    /// Whether it was done everywhere before the story was over.
    async fn repeat(&self, method: &Method, key: &str, rng: &mut Rng) -> bool {
        while !self.story.is_over() {
            let agent = self.agent(rng);
            match self.change(method, &agent, key).await {
                Ok(()) => return true,
                Err(err) => tracing::info!(%agent, %method, %err, "the keyring was not changed everywhere"),
            }
            self.story.count("keyring.refused");
            self.story.world.advance(RETRY_PAUSE).await;
        }
        false
    }
    async fn change(&self, method: &Method, agent: &str, key: &str) -> Result<(), Failure> {
        let body: Value = json!({ "Key": key });
        let answer = self.wire.http(method.clone(), agent, PATH, body.to_string()).await?;
        match answer.status.as_u16() {
            200 => Ok(()),
            status => Err(Failure::Unanswered(format!("{status} {}", answer.text()))),
        }
    }
    fn agent(&self, rng: &mut Rng) -> String {
        let agents = self.story.resolve_all(&self.settings.at, rng);
        agents[below(rng, agents.len())].clone()
    }
}

fn below(rng: &mut Rng, count: usize) -> usize {
    usize::try_from(rng.next_u64() % count as u64).expect("less than a count of things in memory")
}

/// 256 random bits in base64.
fn new_key(rng: &mut Rng) -> String {
    let mut key: String = (0..42).map(|_| char::from(BASE64[below(rng, 64)])).collect();
    // The last letter before the padding stands for four bits.
    key.push(char::from(BASE64[4 * below(rng, 16)]));
    key.push('=');
    key
}
