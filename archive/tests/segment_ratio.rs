//! What segments take.

#[path = "../examples/segments/exchanges.rs"]
mod exchanges;

use archive::segment::{Facts, Id, Settings, Writer, term};

use self::exchanges::exchanges;

#[test]
fn exchanges_take_at_most_15_percent_of_their_json() {
    let (mut out, mut raw) = (Vec::new(), 0);
    let mut writer = Writer::new(Settings::default(), Id([1; 16]), 0, None, &mut out).unwrap();
    let mut made = exchanges(3);
    while raw < 4 << 20 {
        let exchange = made.next().unwrap();
        let terms = [term("route", exchange.route), term("trace", &exchange.trace)];
        writer.push(exchange.json.as_bytes(), &Facts { time: exchange.time, status: exchange.status, terms: &terms }).unwrap();
        raw += exchange.json.len() + 1;
        if writer.is_full() {
            let frame = writer.frame(&mut out).unwrap().unwrap();
            writer.written(frame);
        }
    }
    if let Some(frame) = writer.frame(&mut out).unwrap() {
        writer.written(frame);
    }
    writer.finish(&mut out);
    assert!(out.len() * 100 <= raw * 15, "{} of {raw} bytes: {:.1} %", out.len(), out.len() as f64 * 100.0 / raw as f64);
}
