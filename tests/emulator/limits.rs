//! The limits at the door, and the memory of it.

use std::time::Duration;

use podgate::emulator::Config;
use podgate::emulator::limits::{Group, Limit, Limits};
use podgate::emulator::policer::Policer;
use serde_json::json;

use super::support::{eventually, request, start, with_workers};

fn limited(group: Group, limit: Limit, workers: u32) -> Config {
    let mut limits = Limits::default();
    limits[group] = limit;
    Config {
        limits,
        ..with_workers(workers)
    }
}

#[tokio::test]
async fn the_third_purge_in_ten_seconds_is_429() {
    let upstream = start(with_workers(1)).await;
    for status in [200, 200, 429] {
        let answer = upstream.call("POST", "purge-queue", "").await;
        assert_eq!(answer.status, status);
        if status == 429 {
            let problem = answer.json();
            assert_eq!(
                (&problem["status"], &problem["title"]),
                (&json!(429), &json!("Too Many Requests"))
            );
            assert_eq!(answer.header("retry-after"), None, "documented nowhere");
        }
    }
    let seen = upstream.seen("purge-queue");
    assert_eq!(
        (&seen["arrived"], &seen["accepted"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(
        seen["refused"],
        json!({"rate": 1, "concurrency": 0, "backlog": 0})
    );
}

#[tokio::test]
async fn the_status_family_shares_one_pool_and_a_window_frees_itself() {
    let limit = Limit {
        requests: Some(3),
        window: Duration::from_millis(400),
        ..Limit::documented(Group::Status)
    };
    let upstream = start(limited(Group::Status, limit, 1)).await;
    let id = upstream.run(json!(1)).await;
    for (operation, status) in [
        ("status", 200),
        ("status-sync", 200),
        ("stream", 200),
        ("status", 429),
    ] {
        let answer = upstream.get(&format!("{operation}/{id}")).await;
        assert_eq!(answer.status, status, "{operation}");
    }
    let room = async {
        while upstream.get(&format!("status/{id}")).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), room)
        .await
        .unwrap();
    let seen = upstream.seen("status");
    assert_eq!(seen["promise2"]["intervals"], 1);
    assert!(seen["min_d_over_w"].as_f64().unwrap() >= 1.0, "{seen}");
    // A window that counts both its ends can hold one more than the sliding log lets in.
    assert!(seen["max_in_window"].as_u64().unwrap() <= 4, "{seen}");
}

#[tokio::test]
async fn more_at_once_than_the_limit_is_429_until_one_is_over() {
    let limit = Limit {
        concurrency: Some(2),
        ..Limit::documented(Group::RunSync)
    };
    let upstream = start(limited(Group::RunSync, limit, 9)).await;
    let address = upstream.address;
    let held = |seconds: f64| async move {
        let body = json!({"input": {"sleep": seconds}}).to_string();
        let mut sender = super::support::connect(address).await;
        let request = request("POST", "/v2/ep/runsync", Some("key"), body.into());
        sender
            .send_request(request)
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    let first = tokio::spawn(held(0.5));
    let second = tokio::spawn(held(0.5));
    eventually("two in flight", || {
        upstream.seen("runsync")["max_in_flight"] == 2
    })
    .await;
    assert_eq!(held(0.0).await, 429);
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (200, 200));
    assert_eq!(held(0.0).await, 200);
    let seen = upstream.seen("runsync");
    assert_eq!(
        seen["refused"],
        json!({"rate": 0, "concurrency": 1, "backlog": 0})
    );
    assert_eq!(seen["max_in_flight"], 2);
}

#[tokio::test]
async fn a_client_that_leaves_a_held_call_leaves_its_place() {
    let limit = Limit {
        concurrency: Some(1),
        ..Limit::documented(Group::Status)
    };
    let upstream = start(limited(Group::Status, limit, 1)).await;
    let id = upstream.run(json!({"sleep": 60})).await;
    let path = format!("/v2/ep/status-sync/{id}");
    let mut sender = super::support::connect(upstream.address).await;
    let held = tokio::spawn(async move {
        let request = request("GET", &path, Some("key"), "".into());
        sender.send_request(request).await.map(|_| ())
    });
    eventually("held", || upstream.seen("status")["accepted"] == 1).await;
    held.abort();
    let room = async {
        while upstream.get(&format!("status/{id}")).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), room)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_queue_is_full_above_fifty_without_workers_and_only_submissions_mind() {
    let upstream = start(with_workers(0)).await;
    for _ in 0..51 {
        upstream.run(json!(1)).await;
    }
    let body = json!({"input": 1});
    assert_eq!(upstream.post("run", &body).await.status, 429);
    assert_eq!(upstream.post("runsync", &body).await.status, 429);
    assert_eq!(upstream.get("health").await.json()["jobs"]["inQueue"], 51);
    assert_eq!(upstream.seen("run")["refused"]["backlog"], 1);
    assert_eq!(upstream.seen("runsync")["refused"]["backlog"], 1);
}

#[tokio::test]
async fn keys_share_a_limit_and_endpoints_do_not() {
    let upstream = start(Config::default()).await;
    let purge = |endpoint: &'static str, key: &'static str| {
        let request = request(
            "POST",
            &format!("/v2/{endpoint}/purge-queue"),
            Some(key),
            "".into(),
        );
        upstream.try_call(request)
    };
    let mut statuses = Vec::new();
    for (endpoint, key) in [("a", "Bearer k"), ("a", "k"), ("a", "other"), ("b", "k")] {
        statuses.push(purge(endpoint, key).await.unwrap().status);
    }
    assert_eq!(statuses, [200, 200, 429, 200]);
}

#[tokio::test]
async fn without_a_policer_everything_passes_and_is_seen() {
    let limit = Limit {
        requests: Some(2),
        ..Limit::documented(Group::Cancel)
    };
    let upstream = start(Config {
        policer: Policer::None,
        ..limited(Group::Cancel, limit, 1)
    })
    .await;
    for _ in 0..5 {
        assert_eq!(upstream.call("POST", "cancel/x", "").await.status, 404);
    }
    let seen = upstream.seen("cancel");
    assert_eq!(
        (&seen["max_in_window"], &seen["promise2"]["intervals"]),
        (&json!(5), &json!(3))
    );
    assert!(seen["min_d_over_w"].as_f64().unwrap() < 1.0);
}

#[tokio::test]
async fn reset_forgets_what_was_seen_and_no_limit() {
    let upstream = start(with_workers(1)).await;
    upstream.call("POST", "purge-queue", "").await;
    upstream.call("POST", "purge-queue", "").await;
    upstream.run(json!(1)).await;
    let answer = upstream.control("POST", "reset", &json!({})).await;
    assert_eq!(
        answer.json()["submissions"],
        json!({"distinct": 0, "repeated": 0})
    );
    let stats = upstream.control("GET", "stats", &json!({})).await.json();
    assert_eq!(stats["endpoints"]["ep"]["purge-queue"]["accepted"], 0);
    assert_eq!(upstream.call("POST", "purge-queue", "").await.status, 429);
}

#[tokio::test]
async fn the_same_submission_twice_is_seen_as_repeated() {
    let upstream = start(with_workers(1)).await;
    for id in [1, 2, 1] {
        upstream.run(json!({ "id": id })).await;
    }
    let submissions = upstream.emulator.stats_json()["submissions"].clone();
    assert_eq!(submissions, json!({"distinct": 2, "repeated": 1}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_on_many_threads_gets_exactly_what_the_limit_allows() {
    let limit = Limit {
        requests: Some(50),
        window: Duration::from_secs(600),
        ..Limit::documented(Group::Health)
    };
    let upstream = start(limited(Group::Health, limit, 1)).await;
    let address = upstream.address;
    let caller = move || async move {
        let mut sender = super::support::connect(address).await;
        let mut accepted = 0;
        for _ in 0..10 {
            let request = request("GET", "/v2/ep/health", Some("key"), "".into());
            let response = sender.send_request(request).await.unwrap();
            accepted += u32::from(response.status() == 200);
            http_body_util::BodyExt::collect(response.into_body())
                .await
                .unwrap();
        }
        accepted
    };
    let callers: Vec<_> = (0..20).map(|_| tokio::spawn(caller())).collect();
    let mut accepted: u32 = 0;
    for caller in callers {
        accepted += caller.await.unwrap();
    }
    assert_eq!(accepted, 50);
    assert_eq!(upstream.seen("health")["max_in_window"], 50);
}
