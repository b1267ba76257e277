//! Who gets which tasks, over real connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::*;
use fetchbox_hub::*;
use fetchbox_model::stream::Topic;

/// Polls until the assignment changes.
async fn next_assignment(client: &HubClient, member: &str, known: &Assignment) -> Assignment {
    let request = PollRequest { positions: vec![], ..poll(member, known, 10_000) };
    client.poll(request).await.unwrap().assignment.expect("the assignment changes in time")
}

fn partitions(assignment: &Assignment, revoking: bool) -> BTreeSet<u32> {
    assignment.partitions.iter().filter(|p| p.revoking == revoking).map(|p| p.partition).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_handed_over_gracefully_and_at_once_when_a_worker_dies() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let (a, b) = (running.client("a", Role::Worker).await, running.client("b", Role::Worker).await);
    let first = a.join(join("a")).await.unwrap();
    assert_eq!(partitions(&first, false).len(), 8);
    let second = b.join(join("b")).await.unwrap();
    assert!(second.partitions.is_empty());
    let asked = next_assignment(&a, "a", &first).await;
    let going = partitions(&asked, true);
    assert_eq!(going.len(), 4);
    // A commit of a partition that is being given up still counts; one of a stranger's does not.
    let operator = running.client("operator", Role::Operator).await;
    let going_first = *going.first().unwrap();
    let id = (0..).map(|_| new_id()).find(|id| fetchbox_model::manifest::partition_of(id, 8) == going_first).unwrap();
    operator.accept(accept_request(&id, 5, None)).await.unwrap();
    let commit = |offset| vec![Commit { topic: Topic::Tasks as u32, group: "workers".into(), partition: going_first, offset }];
    b.append(AppendRequest { member: "b".into(), entries: vec![], commits: commit(5) }).await.unwrap();
    a.append(AppendRequest { member: "a".into(), entries: vec![], commits: commit(2) }).await.unwrap();
    let released = JoinRequest { partitions: going.iter().copied().collect(), ..join("a") };
    let kept = a.release_partitions(released).await.unwrap();
    assert_eq!((partitions(&kept, false).len(), partitions(&kept, true).len()), (4, 0));
    let got = next_assignment(&b, "b", &second).await;
    assert_eq!(partitions(&got, false), going);
    assert_eq!(got.partitions.iter().find(|p| p.partition == going_first).unwrap().committed, 2);
    // What a does not own (any more) it is not given.
    let request = PollRequest { positions: vec![Position { partition: going_first, next_offset: 0 }], ..poll("a", &kept, 0) };
    assert!(a.poll(request).await.unwrap().batches.is_empty());
    let polled = b.poll(poll("b", &got, 5000)).await.unwrap();
    assert_eq!((polled.batches.len(), polled.batches[0].base_offset, polled.batches[0].count), (1, 0, 5));
    a.close();
    let all = next_assignment(&b, "b", &got).await;
    assert_eq!(partitions(&all, false).len(), 8);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_waits_for_what_comes_and_is_fair_between_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let assignment = all.join(join("w")).await.unwrap();
    let waiting = tokio::spawn({
        let (all, request) = (all.clone(), poll("w", &assignment, 20_000));
        async move { all.poll(request).await.unwrap() }
    });
    all.accept(accept_request(&new_id(), 1, None)).await.unwrap();
    assert_eq!(waiting.await.unwrap().batches.len(), 1);
    for _ in 0..60 {
        all.accept(accept_request(&new_id(), 1, None)).await.unwrap();
    }
    let mut seen = BTreeSet::new();
    for batch in all.poll(PollRequest { max_messages: 8, ..poll("w", &assignment, 0) }).await.unwrap().batches {
        seen.insert(batch.partition);
    }
    assert!(seen.len() >= 6, "one partition after another instead of all in turn: {seen:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stands_still_loses_its_partitions_and_one_that_only_waits_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.session_timeout = 4.0;
    let running = Running::start(settings);
    // A runtime that is driven only until the join is answered: from then on the process might as well be stopped.
    let socket = running.socket.clone();
    let stopped = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let owned = runtime.block_on(async {
            let still = client(&socket, "still", Role::Worker);
            still.wait_connected(LIMIT).await.unwrap();
            still.join(join("still")).await.unwrap().partitions.len()
        });
        assert_eq!(owned, 8);
        runtime
    });
    let stopped = stopped.await.unwrap();
    let waiting = running.client("waiting", Role::Worker).await;
    let mut pushes = waiting.subscribe();
    let mut assignment = waiting.join(join("waiting")).await.unwrap();
    while partitions(&assignment, false).len() < 8 {
        assignment = next_assignment(&waiting, "waiting", &assignment).await;
    }
    // The news of its connecting may have come after the subscription.
    while let Ok(push) = pushes.try_recv() {
        assert_ne!(push, Push::Disconnected, "the waiting worker was disconnected");
    }
    tokio::task::spawn_blocking(move || drop(stopped)).await.unwrap();
    running.stop().await;
}
