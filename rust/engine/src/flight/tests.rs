use super::*;

fn task(job: &str, index: u32) -> DownloadTask {
    DownloadTask { job_id: job.into(), resource_index: index, resource_id: index.to_string(), ..Default::default() }
}

/// A recorder whose process dies: its lock is gone, its file is not.
fn die(flight: Flight) {
    let copy = flight.path.with_file_name("copy");
    fs::copy(&flight.path, &copy).unwrap();
    let path = flight.path.clone();
    drop(flight);
    fs::rename(copy, path).unwrap();
}

fn crash(dir: &Path, tasks: &[u32]) {
    let flight = Flight::open(dir, 8).unwrap();
    let slots: Vec<Slot<'_>> = tasks
        .iter()
        .map(|index| {
            let slot = Flight::slot(Some(&flight));
            slot.begin(&task("job", *index));
            slot
        })
        .collect();
    std::mem::forget(slots);
    die(flight);
}

fn suspects(dir: &Path) -> HashSet<u64> {
    Flight::open(dir, 8).unwrap().suspects().unwrap()
}

fn digests(tasks: &[u32]) -> HashSet<u64> {
    tasks.iter().map(|index| digest(&task("job", *index))).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_was_under_way_in_two_deaths_is_suspect() {
    let dir = tempfile::tempdir().unwrap();
    crash(dir.path(), &[1, 2, 3]);
    assert_eq!(suspects(dir.path()), digests(&[]));
    crash(dir.path(), &[3, 4]);
    assert_eq!(suspects(dir.path()), digests(&[3]));
    crash(dir.path(), &[4, 5]);
    assert_eq!(suspects(dir.path()), digests(&[3, 4]));
    assert_eq!(names(dir.path()).len(), 3);
}

#[test]
fn two_that_die_at_the_same_time_count_as_two() {
    let dir = tempfile::tempdir().unwrap();
    crash(dir.path(), &[1, 2]);
    crash(dir.path(), &[2, 3]);
    assert_eq!(suspects(dir.path()), digests(&[2]));
}

#[test]
fn what_ended_before_the_death_is_not_under_way() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let flight = Flight::open(dir.path(), 2).unwrap();
        let (first, second) = (Flight::slot(Some(&flight)), Flight::slot(Some(&flight)));
        first.begin(&task("job", 1));
        first.begin(&task("job", 2));
        second.begin(&task("job", 3));
        drop(second);
        std::mem::forget(first);
        die(flight);
    }
    assert_eq!(suspects(dir.path()), digests(&[2]));
}

#[test]
fn the_living_and_those_that_ended_well_leave_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let living = Flight::open(dir.path(), 8).unwrap();
    let slot = Flight::slot(Some(&living));
    slot.begin(&task("job", 1));
    drop(Flight::open(dir.path(), 8).unwrap());
    crash(dir.path(), &[]);
    assert_eq!(living.suspects().unwrap(), digests(&[]));
    assert_eq!(names(dir.path()), [living.path.file_name().unwrap().to_str().unwrap()]);
    drop(slot);
    drop(living);
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn old_records_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    crash(dir.path(), &[1]);
    for index in 0..RECORDS as u32 {
        crash(dir.path(), &[100 + index]);
        suspects(dir.path());
    }
    crash(dir.path(), &[1]);
    assert_eq!(suspects(dir.path()), digests(&[]));
    assert_eq!(names(dir.path()).len(), RECORDS);
}

#[test]
fn more_downloads_than_slots_are_not_recorded_and_slots_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let flight = Flight::open(dir.path(), 1).unwrap();
    for _ in 0..3 {
        let (first, second) = (Flight::slot(Some(&flight)), Flight::slot(Some(&flight)));
        first.begin(&task("job", 1));
        second.begin(&task("job", 2));
        assert_eq!(read(&flight.path).unwrap(), digests(&[1]));
    }
    assert_eq!(read(&flight.path).unwrap(), digests(&[]));
    Flight::slot(None).begin(&task("job", 1));
}

#[test]
fn a_digest_tells_tasks_apart_and_not_deliveries() {
    let again = DownloadTask { attempt: 3, generation: 2, ..task("job", 1) };
    assert_eq!(digest(&task("job", 1)), digest(&again));
    assert_ne!(digest(&task("job", 1)), digest(&task("job", 2)));
    assert_ne!(digest(&task("job", 1)), digest(&task("other", 1)));
}

#[test]
fn junk_in_the_directory_is_no_record() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["crash-zz", "crash-", "live-x", "other"] {
        fs::write(dir.path().join(name), b"12345").unwrap();
    }
    assert_eq!(suspects(dir.path()), digests(&[]));
}
