use super::*;
use crate::config::definition::{prepare_check, prepare_service};
use crate::testing::{client_router, leaderless_router, local, local_in, member, on_production, settings};
use quorate_rt::Rt as _;
use quorate_rt::production::TokioRt;
use std::time::Duration;

const HOLD_TIMEOUT: Duration = Duration::from_millis(300);

fn ttl_check(id: &str, ttl: Duration) -> CheckDefinition {
    let check = CheckDefinition {
        id: id.to_owned(),
        name: id.to_owned(),
        notes: String::new(),
        service_id: String::new(),
        status: CheckStatus::Critical,
        kind: CheckKind::Ttl { ttl },
        interval: Duration::ZERO,
        timeout: None,
        success_before_passing: 0,
        failures_before_warning: 0,
        failures_before_critical: 0,
        deregister_critical_service_after: None,
        output_len_bytes_max: 0,
        token: String::new(),
    };
    prepare_check(check).expect("a good check")
}

/// Of an agent that knows no server: every push fails at once.
async fn lone(rt: &TokioRt) -> (Local<TokioRt>, DataDir<TokioRt>, CheckUpdates) {
    let gossip = member(rt, 1, None).await;
    local(rt, client_router(rt, &gossip, HOLD_TIMEOUT)).await
}

#[test]
fn an_expiry_that_was_taken_out_before_a_pass_was_told_is_not_entered_after_it() {
    on_production(|rt| async move {
        let (local, _, mut results) = lone(&rt).await;
        local
            .register_check(ttl_check("t", Duration::from_millis(1)))
            .await
            .expect("registered");
        let expiry = results.recv().await.expect("it expires");
        local
            .update_ttl("t", CheckStatus::Passing, "alive".to_owned())
            .await
            .expect("a TTL check");
        let entered = local.take_result(&expiry);
        let check = Arc::clone(&local.checks()[0]);
        assert_eq!(
            (entered, check.status, check.output.as_str()),
            (false, CheckStatus::Passing, "alive")
        );
        // The next one is entered.
        let expiry = results.recv().await.expect("it expires again");
        local.take_result(&expiry);
        assert_eq!(local.checks()[0].status, CheckStatus::Critical);
    });
}

fn service(id: &str) -> ServiceDefinition {
    let service = Service {
        name: id.to_owned(),
        ..Service::default()
    };
    let definition = ServiceDefinition {
        service,
        ..ServiceDefinition::default()
    };
    prepare_service(definition).expect("a good service")
}

#[test]
fn edits_without_a_leader_share_one_attempt_to_push_them() {
    on_production(|rt| async move {
        let (local, _, _results) = local(&rt, leaderless_router(&rt, HOLD_TIMEOUT).await).await;
        let started_at = rt.now();
        // The first one's push begins before the others are edited; one more push carries all of these.
        let edits = (0..20).map(|n| {
            let local = local.clone();
            async move { local.register_service(service(&format!("s{n}")), false).await }
        });
        for edited in futures::future::join_all(edits).await {
            edited.expect("an edit needs no leader");
        }
        assert_eq!(local.services().len(), 20);
        let pushes = local.inner.push_count.load(Ordering::SeqCst);
        assert!(pushes <= 2, "{pushes} pushes");
        assert!(rt.now() - started_at >= HOLD_TIMEOUT, "a push waits for a leader");
    });
}

#[test]
fn registering_deregistering_and_reloading_at_once_leave_memory_and_disk_alike() {
    on_production(|rt| async move {
        let folder = tempfile::tempdir().expect("a folder");
        let gossip = member(&rt, 1, None).await;
        let router = client_router(&rt, &gossip, HOLD_TIMEOUT);
        let (local, data_dir, _results) = local_in(&rt, router, Some(folder.path())).await;
        for round in 0..40 {
            let node = local.node();
            // A file that names the service, or no longer does.
            let from_files: Vec<ServiceDefinition> = (round % 2 == 0).then(|| service("web")).into_iter().collect();
            let register = local.register_service(service("web"), false);
            let deregister = local.deregister_service("web");
            let reload = local.reload(&from_files, &[], settings(), node);
            let (registered, _, reloaded) = futures::future::join3(register, deregister, reload).await;
            registered.expect("registered");
            reloaded.expect("reloaded");
            let kept = data_dir.load().await.expect("it can be read");
            let on_disk = kept.services.iter().any(|kept| kept.service.id == "web");
            let table = locked(&local.inner.table);
            let origin = table.service_origin.get("web").copied();
            assert_eq!(table.state.service("web").is_some(), origin.is_some(), "round {round}");
            assert_eq!(on_disk, origin == Some(Origin::Remote), "round {round}: {origin:?}");
        }
    });
}

#[test]
fn a_reload_waits_for_the_edit_under_way() {
    on_production(|rt| async move {
        let (local, _, _results) = lone(&rt).await;
        let edit = local.inner.edit_lock.lock().await;
        let (files, node) = ([service("web")], local.node());
        let mut reload = std::pin::pin!(local.reload(&files, &[], settings(), node));
        assert!(futures::poll!(reload.as_mut()).is_pending());
        assert!(local.services().is_empty());
        drop(edit);
        reload.await.expect("reloaded");
        assert_eq!(local.services().len(), 1);
    });
}
