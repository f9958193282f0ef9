//! What the demo shows of itself: its page as a real browser renders it, and `/metrics` of every process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const BLOCKS: u64 = 64;
/// What a browser may take, on a machine that does something else as well.
const PATIENCE: Duration = Duration::from_secs(60);

// --- the processes --------------------------------------------------------------------------------------

/// Prefill, decode and router, killed with this value.
struct Fleet {
    _processes: Vec<Process>,
    prefill: String,
    decode: String,
    router: String,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(arguments: &[&str]) -> (Process, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_disagg"));
    command.args(arguments).stdout(Stdio::piped());
    let mut child = command.spawn().expect("disagg starts");
    let (mut line, mut lines) = (String::new(), BufReader::new(child.stdout.take().expect("a pipe")));
    // A library may print before it.
    while !line.starts_with("listening on ") {
        line.clear();
        let read = lines.read_line(&mut line).expect("UTF-8");
        assert!(read > 0, "{arguments:?} ended before it listened: {:?}", child.wait());
    }
    let url = line["listening on ".len()..].trim();
    (Process(child), url.to_owned())
}

impl Fleet {
    fn start() -> Self {
        let blocks = BLOCKS.to_string();
        let (one, prefill) = start(&["prefill", "--blocks", &blocks]);
        let (two, decode) = start(&["decode", "--blocks", &blocks]);
        let (three, router) = start(&["router", "--prefill", &prefill, "--decode", &decode]);
        Self { _processes: vec![one, two, three], prefill, decode, router }
    }

    /// One completion; decode holds its blocks for a while if that is asked.
    async fn complete(&self, mode: &str, drill: Option<&str>) -> Value {
        let ask = json!({ "prompt": "what is computed here goes on there", "max_tokens": 4, "kv_mode": mode, "drill": drill });
        let url = format!("{}/v1/completions", self.router);
        let answer = reqwest::Client::new().post(url).json(&ask).send().await.expect("the router answers");
        answer.json().await.expect("JSON")
    }

    /// Every way once, and a request that is given up; then every block is free again.
    async fn work(&self) {
        for mode in ["pull", "push", "chunked", "layerwise"] {
            let answer = self.complete(mode, None).await;
            assert_eq!(answer["connect"]["tokens"].as_array().map(Vec::len), Some(4), "{mode}: {answer}");
        }
        assert_eq!(self.complete("pull", Some("abort")).await["error"]["kind"], "aborted");
        let until = Instant::now() + PATIENCE;
        loop {
            let live: Value =
                serde_json::from_str(&get(&format!("{}/live", self.router)).await).expect("JSON");
            let engines = live["engines"].as_array().expect("engines");
            if engines.iter().all(|engine| engine["free"] == BLOCKS && engine["leases"] == 0) {
                return;
            }
            assert!(Instant::now() < until, "{live}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn get(url: &str) -> String {
    reqwest::get(url).await.expect("an answer").text().await.expect("text")
}

// --- the browser ----------------------------------------------------------------------------------------

/// Chromium, or what is one; `None` where there is none and none is required.
fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let found =
        names.iter().flat_map(|name| std::env::split_paths(&path).map(move |folder| folder.join(name)));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        let is_set = |name| {
            std::env::var(name).is_ok_and(|value| !value.is_empty() && value != "0" && value != "false")
        };
        let is_required = is_set("CONNECT_REQUIRE_CHROMIUM") || is_set("CI");
        assert!(!is_required, "there is no Chromium. Remedy: apt-get install chromium");
        eprintln!(
            "NOT RUN: there is no Chromium, so nobody has looked at the page. Remedy: apt-get install chromium"
        );
    }
    found
}

/// The page as it stands after four seconds of its own time, and a picture of it.
fn rendered(chromium: &Path, url: &str, picture: Option<&Path>) -> String {
    let profile = tempfile::tempdir().expect("a folder");
    let dom = profile.path().join("dom.html");
    let mut command = Command::new(chromium);
    command
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1280,1120"])
        .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
        .args(["--virtual-time-budget=4000", "--dump-dom"])
        .args(picture.map(|path| format!("--screenshot={}", path.display())))
        .arg(url)
        .stdout(std::fs::File::create(&dom).expect("a file"))
        .stderr(Stdio::null());
    let mut browser = Process(command.spawn().expect("Chromium starts"));
    let until = Instant::now() + PATIENCE;
    while browser.0.try_wait().expect("a child").is_none() {
        assert!(Instant::now() < until, "Chromium does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::read_to_string(&dom).expect("UTF-8")
}

/// The attributes of all elements that have this one.
fn elements(dom: &str, attribute: &str) -> Vec<BTreeMap<String, String>> {
    let tags = dom.split('<').filter_map(|rest| rest.split_once('>')).map(|(tag, _)| tag);
    let with = tags.filter(|tag| tag.contains(&format!(" {attribute}=\"")));
    with.map(|tag| {
        let pairs = tag.split("\" ").filter_map(|pair| pair.rsplit_once("=\""));
        pairs
            .map(|(name, value)| {
                let name = name.rsplit(' ').next().unwrap_or(name);
                (name.to_owned(), value.trim_end_matches('"').to_owned())
            })
            .collect()
    })
    .collect()
}

/// The large figure of a tile.
fn figure<'a>(dom: &'a str, tile: &str) -> Option<&'a str> {
    let (_, rest) = dom.split_once(&format!("data-tile=\"{tile}\""))?;
    let (_, rest) = rest.split_once("<b>")?;
    rest.split_once("</b>").map(|(figure, _)| figure)
}

/// What the page must show after some requests, whatever else it shows.
///
/// # Errors
/// What is missing.
fn judge(dom: &str) -> Result<(), String> {
    let errors = elements(dom, "data-errors");
    match errors.first().map(|element| element["data-errors"].as_str()) {
        Some("0") => {}
        Some(count) => return Err(format!("{count} script errors")),
        None => return Err("the script did not run".to_owned()),
    }
    let engines = elements(dom, "data-engine");
    let roles: Vec<&str> = engines.iter().map(|engine| engine["data-engine"].as_str()).collect();
    if roles != ["prefill", "decode"] {
        return Err(format!("engines: {roles:?}"));
    }
    for engine in &engines {
        let states = ["data-free", "data-leased", "data-in_flight", "data-quarantined"];
        let counts = states.map(|state| engine.get(state).and_then(|count| count.parse::<u64>().ok()));
        let sum = counts.iter().try_fold(0, |sum, count| count.map(|count| sum + count));
        if sum != Some(BLOCKS) {
            return Err(format!("the blocks of {engine:?} are not those of the pool"));
        }
    }
    let requests = elements(dom, "data-request");
    let ended = |state: &str| requests.iter().filter(|request| request["data-state"] == state).count();
    if ended("done") < 4 || ended("aborted") != 1 {
        return Err(format!("requests: {requests:?}"));
    }
    for tile in ["speed per transfer", "aggregate speed"] {
        let speed = figure(dom, tile)
            .and_then(|figure| figure.split_once(' '))
            .map(|(speed, _)| speed.parse::<f64>());
        if !matches!(speed, Some(Ok(speed)) if speed > 0.0) {
            return Err(format!("{tile}: {:?}", figure(dom, tile)));
        }
    }
    Ok(())
}

// --- the tests ------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_requests_transfers_and_blocks_in_a_real_browser() {
    let Some(chromium) = chromium() else { return };
    let fleet = Fleet::start();
    fleet.work().await;
    let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page.png");
    let dom = rendered(&chromium, &fleet.router, Some(&picture));
    judge(&dom).unwrap_or_else(|missing| panic!("{missing}\n{dom}"));
    assert!(std::fs::read(&picture).is_ok_and(|bytes| bytes.starts_with(b"\x89PNG")), "a picture");
    // At rest, everything is free and nothing is asked for.
    assert!(elements(&dom, "data-engine").iter().all(|engine| engine["data-free"] == BLOCKS.to_string()));
    assert_eq!((figure(&dom, "requests now"), figure(&dom, "requests over")), (Some("0"), Some("5")));

    // And at work it shows what is out: decode holds these blocks for half a second each time.
    let until = Instant::now() + PATIENCE;
    loop {
        let busy =
            async { both(fleet.complete("pull", Some("slow")), fleet.complete("push", Some("slow"))).await };
        let (browser, url) = (chromium.clone(), fleet.router.clone());
        let look = tokio::task::spawn_blocking(move || rendered(&browser, &url, None));
        let (_, dom) = both(busy, look).await;
        let dom = dom.expect("no panic");
        judge(&dom).unwrap_or_else(|missing| panic!("{missing}\n{dom}"));
        let engines = elements(&dom, "data-engine");
        let has = |state: &str| engines.iter().any(|engine| engine[state] != "0");
        if has("data-leased") || has("data-in_flight") {
            break;
        }
        assert!(Instant::now() < until, "no block is ever seen in use");
    }
}

async fn both<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    tokio::join!(a, b)
}

/// The negative control: the same page with a mistake in its script, and with numbers that do not add up.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_page_and_blocks_that_do_not_add_up_are_noticed() {
    let Some(chromium) = chromium() else { return };
    let fleet = Fleet::start();
    fleet.work().await;
    let page = include_str!("../src/bin/disagg/page.html");
    let live = get(&format!("{}/live", fleet.router)).await;
    let looks = [
        (page.to_owned(), live.clone(), None),
        (
            page.replace("function engine(e) {", "function engine(e) { no.such.thing;"),
            live.clone(),
            Some("script error"),
        ),
        (
            page.to_owned(),
            live.replacen("\"leased\":0", "\"leased\":1", 1),
            Some("are not those of the pool"),
        ),
        (page.to_owned(), live.replace("\"transfers\":", "\"other\":"), Some("speed per transfer")),
    ];
    for (page, live, missing) in looks {
        let url = served(page, live);
        let browser = chromium.clone();
        let dom =
            tokio::task::spawn_blocking(move || rendered(&browser, &url, None)).await.expect("no panic");
        match (judge(&dom), missing) {
            (Ok(()), None) => {}
            (Err(found), Some(missing)) if found.contains(missing) => {}
            (found, missing) => panic!("{found:?} instead of {missing:?}\n{dom}"),
        }
    }
}

/// A server of a page and its numbers, for as long as this test runs.
fn served(page: String, live: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let Ok(read) = stream.read(&mut head) else { continue };
            let is_live = head[..read].starts_with(b"GET /live");
            let (kind, body) = if is_live { ("application/json", &live) } else { ("text/html", &page) };
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
        }
    });
    url
}

/// The value of a metric in Prometheus' text; labels that are given must be there.
fn metric(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let is_it = |line: &&str| {
        let rest = line.strip_prefix(name).unwrap_or_default();
        rest.starts_with(['{', ' ']) && labels.iter().all(|label| line.contains(label))
    };
    let values = text.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.fold(None, |sum, value| Some(sum.unwrap_or_default() + value))
}

#[tokio::test]
async fn every_process_serves_its_metrics_as_text() {
    let fleet = Fleet::start();
    fleet.work().await;
    // Each side counts bytes when its own transport says so.
    let until = Instant::now() + PATIENCE;
    loop {
        let out = metric(&get(&format!("{}/metrics", fleet.prefill)).await, "kv_bytes_total", &["\"out\""]);
        let into = metric(&get(&format!("{}/metrics", fleet.decode)).await, "kv_bytes_total", &["\"in\""]);
        if out > Some(0.0) && out == into {
            break;
        }
        assert!(Instant::now() < until, "{out:?} out and {into:?} in");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let [prefill, decode, router] =
        [&fleet.prefill, &fleet.decode, &fleet.router].map(|url| format!("{url}/metrics"));
    let (prefill, decode, router) = (get(&prefill).await, get(&decode).await, get(&router).await);
    for (text, role) in [(&prefill, "prefill"), (&decode, "decode")] {
        assert_eq!(metric(text, "kv_blocks", &[]), Some(BLOCKS as f64), "{role}: {text}");
        assert_eq!(
            metric(text, "kv_blocks", &["state=\"free\""]),
            Some(BLOCKS as f64),
            "{role}: all are back"
        );
        assert_eq!(metric(text, "kv_leases_expired_total", &[]), Some(0.0), "{role}");
        assert!(metric(text, "kv_handshake_seconds_count", &[]) >= Some(1.0), "{role}: {text}");
        assert!(
            text.contains("# TYPE kv_transfer_seconds histogram") && text.contains("# HELP kv_blocks "),
            "{text}"
        );
    }
    // Decode read in three ways, and prefill pushed once.
    assert!(metric(&decode, "kv_transfer_seconds_count", &[]) >= Some(3.0), "{decode}");
    assert_eq!(metric(&prefill, "kv_transfer_seconds_count", &[]), Some(1.0), "{prefill}");
    assert!(decode.contains("kv_transfer_seconds_bucket{le=\"0.00025\"}"), "its own buckets: {decode}");
    assert_eq!(
        metric(&prefill, "kv_failures_total", &["kind=\"cancel\""]),
        Some(1.0),
        "the one given up: {prefill}"
    );
    assert_eq!(metric(&router, "router_requests_total", &["outcome=\"done\""]), Some(4.0), "{router}");
    assert_eq!(metric(&router, "router_requests_total", &["outcome=\"aborted\""]), Some(1.0), "{router}");
    assert_eq!(metric(&router, "router_requests_active", &[]), Some(0.0), "{router}");
    assert_eq!(metric(&router, "router_first_token_seconds_count", &[]), Some(4.0), "{router}");
}
