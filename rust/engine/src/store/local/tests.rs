use std::fs;

use super::*;

fn put(store: &LocalStore, key: &str, body: &'static [u8]) {
    let mut draft = store.create(&ObjectKey::from_path(key).unwrap()).unwrap();
    draft.write(&[Bytes::from_static(body)]).unwrap();
    store.publish(&mut draft).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_appear_whole_and_replace_each_other() {
    for nameless in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::open(root.path()).unwrap();
        store.nameless.store(nameless, Ordering::Relaxed);
        put(&store, "a/b/c", b"one");
        put(&store, "a/b/c", b"two and longer");
        put(&store, "top", b"");
        assert_eq!(fs::read(root.path().join("a/b/c")).unwrap(), b"two and longer");
        assert_eq!(fs::read(root.path().join("top")).unwrap(), b"");
        store.sweep();
        assert_eq!(names(root.path()), ["a", "top"]);
    }
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    for nameless in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::open(root.path()).unwrap();
        store.nameless.store(nameless, Ordering::Relaxed);
        let mut draft = store.create(&ObjectKey::from_path("x").unwrap()).unwrap();
        draft.write(&[Bytes::from_static(b"half")]).unwrap();
        drop(draft);
        store.sweep();
        assert_eq!(names(root.path()), Vec::<String>::new());
    }
}

#[test]
fn a_start_clears_what_a_crash_left_and_spares_what_is_in_use() {
    let root = tempfile::tempdir().unwrap();
    let staging = root.path().join(STAGING);
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("dead"), b"x").unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    assert_eq!(names(root.path()), Vec::<String>::new());
    store.nameless.store(false, Ordering::Relaxed);
    let mut draft = store.create(&ObjectKey::from_path("x").unwrap()).unwrap();
    let other = LocalStore::open(root.path()).unwrap();
    assert_eq!(names(&staging).len(), 1);
    store.publish(&mut draft).unwrap();
    drop(other);
    assert_eq!(names(root.path()), [STAGING, "x"]);
}

#[test]
fn directories_removed_behind_our_back_are_made_again() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    put(&store, "a/b/one", b"1");
    fs::remove_dir_all(root.path().join("a")).unwrap();
    put(&store, "a/b/two", b"2");
    let mut draft = store.create(&ObjectKey::from_path("a/b/three").unwrap()).unwrap();
    fs::remove_dir_all(root.path().join("a")).unwrap();
    store.publish(&mut draft).unwrap();
    assert_eq!(names(&root.path().join("a/b")), ["three"]);
}

#[test]
fn an_object_in_the_way_of_a_directory_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    put(&store, "a", b"1");
    assert!(store.create(&ObjectKey::from_path("a/b").unwrap()).is_err());
}

#[test]
fn a_start_beside_us_that_removes_the_staging_directory_costs_nothing() {
    for nameless in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::open(root.path()).unwrap();
        store.nameless.store(nameless, Ordering::Relaxed);
        for body in [b"1", b"2", b"3"] {
            put(&store, "x", body);
            // Another worker opens the same root: its sweep takes the empty staging directory, whose descriptor we keep.
            drop(LocalStore::open(root.path()).unwrap());
            assert_eq!(names(root.path()), ["x"]);
            assert_eq!(fs::read(root.path().join("x")).unwrap(), body);
        }
    }
}
