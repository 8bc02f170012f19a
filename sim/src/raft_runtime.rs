//! openraft's runtime in the world: madsim runs its tasks, and its clock is that of the machine whose task asks.
//!
//! openraft's runtime is a type without a value, so the machine is found through the calling task.

use crate::world::{MachineId, VirtualSleep, World};
use madsim::runtime::Runtime;
use openraft_rt::{AsyncRuntime, OptionalSend, instant};
use openraft_rt_sim::SimWatch;
use openraft_rt_tokio::{TokioMpsc, TokioMutex, TokioOneshot};
use pin_project_lite::pin_project;
use quorate_rt::{Elapsed, Rng, Rt as _};
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// See the module's page.
pub struct RaftRuntime(Runtime);

impl fmt::Debug for RaftRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RaftRuntime")
    }
}

impl quorate_replica::RaftRt for crate::rt::SimRt {
    type AsyncRuntime = RaftRuntime;
}

/// Local time of the machine that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RaftInstant(u64);

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for RaftInstant {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(nanos(rhs)))
    }
}
impl AddAssign<Duration> for RaftInstant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}
impl Sub<Duration> for RaftInstant {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        Self(
            self.0
                .checked_sub(nanos(rhs))
                .expect("local time begins a year after its zero"),
        )
    }
}
impl SubAssign<Duration> for RaftInstant {
    fn sub_assign(&mut self, rhs: Duration) {
        *self = *self - rhs;
    }
}
impl Sub for RaftInstant {
    type Output = Duration;
    fn sub(self, rhs: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(rhs.0))
    }
}
impl instant::Instant for RaftInstant {
    fn now() -> Self {
        let world = World::current();
        Self(world.local_now(world.calling_machine()))
    }
}

/// Sleeps until its machine's clock shows a local time.
pub struct RaftSleep {
    world: World,
    machine: Option<MachineId>,
    local: u64,
    sleep: VirtualSleep,
}

impl Future for RaftSleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            std::task::ready!(Pin::new(&mut self.sleep).poll(cx));
            if self.world.local_now(self.machine) >= self.local {
                return Poll::Ready(());
            }
            // The clock was slowed meanwhile.
            self.sleep = self
                .world
                .sleep_until_virtual(self.world.virtual_of(self.machine, self.local));
        }
    }
}

pin_project! {
    /// Work with a deadline. Work that is ready at the deadline wins.
    pub struct RaftTimeout<F> {
        #[pin]
        work: F,
        sleep: RaftSleep,
    }
}

impl<F: Future> Future for RaftTimeout<F> {
    type Output = Result<F::Output, Elapsed>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.work.poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => Pin::new(this.sleep).poll(cx).map(|()| Err(Elapsed)),
        }
    }
}

impl AsyncRuntime for RaftRuntime {
    type JoinError = madsim::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = madsim::task::JoinHandle<T>;
    type Sleep = RaftSleep;
    type Instant = RaftInstant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = RaftTimeout<T>;
    type ThreadLocalRng = Rng;
    type Mpsc = TokioMpsc;
    type Watch = SimWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        madsim::task::spawn(future)
    }
    fn sleep(duration: Duration) -> RaftSleep {
        Self::sleep_until(<RaftInstant as instant::Instant>::now() + duration)
    }
    fn sleep_until(deadline: RaftInstant) -> RaftSleep {
        let world = World::current();
        let machine = world.calling_machine();
        let sleep = world.sleep_until_virtual(world.virtual_of(machine, deadline.0));
        RaftSleep {
            world,
            machine,
            local: deadline.0,
            sleep,
        }
    }
    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, work: F) -> RaftTimeout<F> {
        RaftTimeout {
            work,
            sleep: Self::sleep(duration),
        }
    }
    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: RaftInstant, work: F) -> RaftTimeout<F> {
        RaftTimeout {
            work,
            sleep: Self::sleep_until(deadline),
        }
    }
    fn is_panic(join_error: &madsim::task::JoinError) -> bool {
        join_error.is_panic()
    }
    fn thread_rng() -> Rng {
        let world = World::current();
        match world.calling_machine() {
            Some(machine) => world.rt_of(machine).rng("raft"),
            None => world.scenario_rng("raft"),
        }
    }
    fn new(_threads: usize) -> Self {
        Self(Runtime::with_seed_and_config(0, madsim::Config::default()))
    }
    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(async {
            World::start(0);
            future.await
        })
    }
    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        std::future::ready(Ok(work()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_keeps_openrafts_rules() {
        openraft_rt::testing::Suite::<RaftRuntime>::test_all();
    }
}
