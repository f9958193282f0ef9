//! 13: tensors by key. The side channel is your own: here a store behind a socket, which both processes can reach.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use connect_candle::{recv_new, send_tensors};
use connect_core::Connector;
use connect_core::rendezvous::{ChannelError, Rendezvous, SideChannel};

/// Where the store listens. One line asks, one line answers.
struct Store(String);

impl SideChannel for Store {
    fn put(&self, key: &str, document: &str) -> Result<(), ChannelError> {
        self.ask(&format!("put {key} {document}")).map(drop)
    }

    fn take(&self, key: &str) -> Result<Option<String>, ChannelError> {
        self.ask(&format!("take {key}"))
            .map(|document| Some(document).filter(|document| !document.is_empty()))
    }
}

impl Store {
    fn ask(&self, question: &str) -> Result<String, ChannelError> {
        let mut stream = TcpStream::connect(&self.0)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?; // every call must end
        writeln!(stream, "{question}")?;
        Ok(BufReader::new(stream).lines().next().ok_or("the store hung up")??)
    }
}

fn serve(listener: &TcpListener) -> Result<()> {
    let mut store: HashMap<String, VecDeque<String>> = HashMap::new();
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut question = String::new();
        BufReader::new(&stream).read_line(&mut question)?;
        let mut words = question.trim_end().splitn(3, ' ').skip(1).map(str::to_owned);
        let documents = store.entry(words.next().unwrap_or_default()).or_default();
        match words.next() {
            Some(document) => documents.push_back(document),
            None => write!(stream, "{}", documents.pop_front().unwrap_or_default())?,
        }
        writeln!(stream)?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let connector = Connector::local()?;
    if let Some(address) = std::env::args().nth(1) {
        let tensors = Rendezvous::new(Store(address)).get(&connector, "step-7", recv_new).wait()?;
        assert_eq!(tensors["x"].to_vec1::<f32>()?, [0., 1., 2., 3.]);
        return Ok(());
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || serve(&listener));

    // Two receivers come early and wait; each takes one of two offers of the same tensor.
    let this = std::env::current_exe()?;
    let receivers = [(); 2].map(|()| Command::new(&this).arg(&address).spawn());
    let x = Tensor::arange(0f32, 4., &Device::Cpu)?;
    let offers = [(); 2].map(|()| send_tensors(&connector, [("x", &x)]));
    let put = Rendezvous::new(Store(address)).put("step-7", offers).wait()?;
    for (report, receiver) in put.wait_for_completion().wait().into_iter().zip(receivers) {
        println!("{} bytes were got by key", report?.bytes);
        ensure!(receiver?.wait()?.success(), "a receiver failed");
    }
    Ok(())
}
