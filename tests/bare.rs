//! The build without the demo, which packages make: `--no-default-features`.

use std::process::Command;

#[test]
fn without_the_demo_no_runtime_and_no_http_server_is_linked() {
    let tree = |features: &[&str]| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none"]);
        let tree = cargo.args(features).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo");
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        String::from_utf8(tree.stdout).expect("UTF-8")
    };
    let linked = |tree: &str| {
        let crates = tree.lines().filter_map(|line| line.split(' ').next());
        let demo = ["tokio", "axum", "hyper", "hyper-util", "tower", "indicatif", "listenfd", "sd-notify"];
        crates.filter(|name| demo.contains(name)).map(String::from).collect::<Vec<_>>()
    };
    let bare = tree(&["--no-default-features"]);
    assert_eq!(linked(&bare), [""; 0], "{bare}");
    assert!(linked(&tree(&[])).contains(&"tokio".into()), "the test knows the names of the crates");
}

#[test]
#[cfg(not(feature = "demo"))]
fn the_demo_says_how_to_get_it() {
    let demo = Command::new(env!("CARGO_BIN_EXE_liveswap"))
        .args(["demo", "--json", "--listen", "127.0.0.1:0"])
        .output()
        .expect("the program");
    let error = String::from_utf8_lossy(&demo.stderr);
    assert_eq!(demo.status.code(), Some(2), "{error}");
    assert!(error.contains("has no demo") && error.contains("cargo run --release -- demo"), "{error}");
}
