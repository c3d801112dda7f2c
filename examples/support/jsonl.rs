//! Records as JSON lines: bytes in lower-case hex, `null` as JSON null, more than 96 bytes as
//! `"crc32c:<8 hex>:<length>"` unless they are asked for in full.

use std::fmt::Write;

use topiclog::{Header, PartitionId, Record, StoredRecord, TimestampType};

/// Longer byte strings are shown by checksum and length.
const SHOWN_BYTES_MAX: usize = 96;

/// What a line may have: what `dump` prints, and where the record is to go.
const FIELDS: [&str; 8] =
    ["offset", "timestamp", "timestamp_type", "leader_epoch", "key", "value", "headers", "partition"];

/// One record as a line.
pub(crate) fn record_line(record: &StoredRecord, full: bool) -> String {
    let kind = match record.timestamp_type() {
        TimestampType::CreateTime => "CreateTime",
        TimestampType::LogAppendTime => "LogAppendTime",
    };
    let mut line = format!(
        "{{\"offset\":{},\"timestamp\":{},\"timestamp_type\":\"{kind}\",\"leader_epoch\":{},\"key\":{},\"value\":{},\"headers\":[",
        record.offset(),
        record.timestamp_ms(),
        record.leader_epoch(),
        bytes(record.key(), full),
        bytes(record.value(), full),
    );
    for (index, header) in record.headers().iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let name = serde_json::Value::from(header.name().into_owned());
        line.push_str(&format!("{comma}[{name},{}]", bytes(header.value(), full)));
    }
    line.push_str("]}");
    line
}

/// Bytes as the lines show them.
pub(crate) fn bytes(bytes: Option<&[u8]>, full: bool) -> String {
    let Some(bytes) = bytes else { return "null".into() };
    if bytes.len() > SHOWN_BYTES_MAX && !full {
        return format!("\"crc32c:{:08x}:{}\"", crc_fast::crc32_iscsi(bytes), bytes.len());
    }
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push('"');
    for byte in bytes {
        write!(text, "{byte:02x}").ok();
    }
    text.push('"');
    text
}

/// The answer to a look-up by time.
pub(crate) fn time_line(time: i64, found: Option<(i64, i64)>) -> String {
    match found {
        Some((offset, timestamp)) => format!("{{\"time\":{time},\"offset\":{offset},\"timestamp\":{timestamp}}}"),
        None => format!("{{\"time\":{time},\"offset\":null,\"timestamp\":null}}"),
    }
}

/// The answer to the question for the largest timestamp.
pub(crate) fn max_timestamp_line(found: Option<(i64, i64)>) -> String {
    match found {
        Some((offset, timestamp)) => format!("{{\"max_timestamp\":{timestamp},\"offset\":{offset}}}"),
        None => "{\"max_timestamp\":null,\"offset\":null}".into(),
    }
}

/// Reads a line back into a record to append. `Ok(None)` for the first line, that of start and end. The text says what
/// is wrong.
pub(crate) fn parse(line: &str) -> Result<Option<Record>, String> {
    let json: serde_json::Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let fields = json.as_object().ok_or("not a JSON object")?;
    if fields.contains_key("start") && fields.keys().all(|name| matches!(name.as_str(), "start" | "end")) {
        return Ok(None);
    }
    if let Some(name) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        return Err(format!("{name}: not a field of a record"));
    }
    let field = |name: &str| {
        unhex(fields.get(name).unwrap_or(&serde_json::Value::Null)).map_err(|why| format!("{name}: {why}"))
    };
    let mut record = Record::new(field("key")?.map(Into::into), field("value")?.map(Into::into));
    match fields.get("timestamp") {
        None | Some(serde_json::Value::Null) => {}
        Some(timestamp) => record = record.timestamp_ms(timestamp.as_i64().ok_or("timestamp: not a number")?),
    }
    match fields.get("partition") {
        None | Some(serde_json::Value::Null) => {}
        Some(partition) => {
            let partition = partition.as_u64().and_then(|number| u32::try_from(number).ok());
            record = record.to_partition(PartitionId::new(partition.ok_or("partition: not a partition number")?));
        }
    }
    let headers = match fields.get("headers") {
        None | Some(serde_json::Value::Null) => &[][..],
        Some(headers) => headers.as_array().ok_or("headers: not an array")?,
    };
    for header in headers {
        let [name, value] = header.as_array().map(Vec::as_slice).unwrap_or_default() else {
            return Err("headers: each must be a pair of name and value".into());
        };
        let name = name.as_str().ok_or("headers: a name is not text")?;
        let value = unhex(value).map_err(|why| format!("header {name:?}: {why}"))?;
        record = record.with_header(Header::from_bytes(name.as_bytes().to_vec(), value.map(Into::into)));
    }
    Ok(Some(record))
}

fn unhex(value: &serde_json::Value) -> Result<Option<Vec<u8>>, String> {
    let text = match value {
        serde_json::Value::Null => return Ok(None),
        serde_json::Value::String(text) => text,
        _ => return Err("neither hex nor null".into()),
    };
    if text.starts_with("crc32c:") {
        return Err("only a checksum of the bytes is given; print them with --full".into());
    }
    unhex_text(text).map(Some)
}

/// Bytes of hex digits.
pub(crate) fn unhex_text(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u32> = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>().ok_or("not hex")?;
    if !digits.len().is_multiple_of(2) {
        return Err("an odd number of hex digits".into());
    }
    Ok(digits.chunks_exact(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
}
