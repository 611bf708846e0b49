//! Row encoding: bytes written and read field by field, every length checked before it is believed.
//!
//! Rows are not CBOR because a stripe row in CBOR costs half as much again, and there is one for every four
//! blocks. Integers are LEB128; byte strings carry their length unless it is fixed.

use super::error::MetaError;

/// Appends fields to a row.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(super) fn int(&mut self, mut value: u64) -> &mut Self {
        loop {
            let low = u8::try_from(value & 0x7f).unwrap_or_default();
            value >>= 7;
            if value == 0 {
                self.0.push(low);
                return self;
            }
            self.0.push(low | 0x80);
        }
    }

    pub(super) fn len(&mut self, value: usize) -> &mut Self {
        self.int(value as u64)
    }

    pub(super) fn fixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.len(bytes.len()).fixed(bytes)
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    pub(super) fn pairs(&mut self, pairs: &[(String, String)]) -> &mut Self {
        self.len(pairs.len());
        for (name, value) in pairs {
            self.text(name).text(value);
        }
        self
    }
}

/// Takes fields off a row.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, what }
    }

    pub(super) fn corrupt(&self) -> MetaError {
        MetaError::Corrupt { what: self.what }
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], MetaError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.corrupt())?;
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, MetaError> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn int(&mut self) -> Result<u64, MetaError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return Err(self.corrupt());
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.corrupt())
    }

    pub(super) fn u32(&mut self) -> Result<u32, MetaError> {
        let value = self.int()?;
        u32::try_from(value).map_err(|_| self.corrupt())
    }

    /// A count of things of which each takes at least `least` bytes, so that it can be allocated for.
    pub(super) fn count(&mut self, least: usize) -> Result<usize, MetaError> {
        let value = usize::try_from(self.int()?).map_err(|_| self.corrupt())?;
        if value > self.rest.len() / least.max(1) {
            return Err(self.corrupt());
        }
        Ok(value)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], MetaError> {
        self.take(N)?.try_into().map_err(|_| self.corrupt())
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], MetaError> {
        let len = self.count(1)?;
        self.take(len)
    }

    pub(super) fn text(&mut self) -> Result<String, MetaError> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| self.corrupt())
    }

    pub(super) fn pairs(&mut self) -> Result<Vec<(String, String)>, MetaError> {
        let count = self.count(2)?;
        (0..count).map(|_| Ok((self.text()?, self.text()?))).collect()
    }

    pub(super) fn end(&self) -> Result<(), MetaError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.corrupt()) }
    }
}
