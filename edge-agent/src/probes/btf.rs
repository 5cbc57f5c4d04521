//! Reads what the probes need from the kernel's own description of its types (BTF): offsets of fields, values of
//! enumerators, arguments of tracepoints.
//!
//! The format is that of the kernel's `Documentation/bpf/btf.rst`. aya parses BTF too but keeps its types to itself.
//! The bytes come from the kernel, yet every length and offset is checked, as for bytes from anywhere.

use std::path::Path;

/// Why a type could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The kernel does not describe its types.
    #[error("{path} cannot be read ({reason}): the kernel must be built with CONFIG_DEBUG_INFO_BTF")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// The description is damaged.
    #[error("the kernel's BTF is damaged at byte {offset} of its {section}")]
    Damaged {
        /// Which part.
        section: &'static str,
        /// Where.
        offset: usize,
    },
    /// A type is not there.
    #[error("the kernel has no {0}")]
    NoType(String),
    /// A type has no such field.
    #[error("the kernel's {0} has no field {1}")]
    NoField(String, String),
}

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;
/// Longest chain of modifiers, and deepest nesting of anonymous members, that is followed.
const DEPTH_MAX: u32 = 16;

/// A kernel's types.
pub(super) struct Btf {
    data: Vec<u8>,
    types_at: usize,
    strings_at: usize,
    strings_bytes: usize,
    /// Where each type is within the types; the id is the place in this list, 0 is void.
    offsets: Vec<u32>,
}

/// A type's fixed part.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// Members, enumerators or parameters.
    count: usize,
    /// Members are stored with their width in bits.
    has_bit_widths: bool,
    /// Size in bytes, or the type that this one refers to.
    size_or_type: u32,
    /// Where its variable part begins within the types.
    rest_at: usize,
}

/// A field within a struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Bytes from the struct's beginning.
    pub(super) offset: u32,
    type_id: u32,
}

impl Btf {
    pub(super) fn of_this_kernel() -> Result<Self, BtfError> {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        let data = std::fs::read(path).map_err(|error| BtfError::Unreadable {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        Self::parse(data)
    }

    pub(super) fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        let header =
            |at: usize| read_u32(&data, at).ok_or(BtfError::Damaged { section: "header", offset: at });
        if header(0)? & 0xffff != u32::from(MAGIC) {
            return Err(BtfError::Damaged { section: "header", offset: 0 });
        }
        let header_bytes = header(4)? as usize;
        let section = |at: usize| -> Result<(usize, usize), BtfError> {
            let damaged = BtfError::Damaged { section: "header", offset: at };
            let (start, bytes) = (header(at)? as usize, header(at + 4)? as usize);
            let start = header_bytes.checked_add(start).ok_or(damaged.clone())?;
            if start.checked_add(bytes).is_none_or(|end| end > data.len()) {
                return Err(damaged);
            }
            Ok((start, bytes))
        };
        let (types_at, types_bytes) = section(8)?;
        let (strings_at, strings_bytes) = section(16)?;
        let mut btf = Self { data, types_at, strings_at, strings_bytes, offsets: vec![u32::MAX] };
        let mut at = 0;
        while at < types_bytes {
            let damaged = BtfError::Damaged { section: "types", offset: at };
            btf.offsets.push(u32::try_from(at).map_err(|_too_large| damaged.clone())?);
            let this = btf.type_at(at).ok_or(damaged.clone())?;
            at = this.rest_at + rest_bytes(&this).ok_or(damaged)?;
        }
        if at != types_bytes {
            return Err(BtfError::Damaged { section: "types", offset: at });
        }
        Ok(btf)
    }

    fn word(&self, at: usize) -> Option<u32> {
        read_u32(&self.data, self.types_at.checked_add(at)?)
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        let info = self.word(at + 4)?;
        Some(Type {
            name: self.word(at)?,
            kind: info >> 24 & 0x1f,
            count: (info & 0xffff) as usize,
            has_bit_widths: info >> 31 == 1,
            size_or_type: self.word(at + 8)?,
            rest_at: at + 12,
        })
    }

    fn by_id(&self, id: u32) -> Option<Type> {
        if id == 0 {
            return None;
        }
        self.type_at(*self.offsets.get(id as usize)? as usize)
    }

    fn string(&self, at: u32) -> &[u8] {
        let strings =
            self.data.get(self.strings_at..self.strings_at + self.strings_bytes).unwrap_or_default();
        strings.get(at as usize..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn find(&self, kind: u32, name: &str) -> Result<(u32, Type), BtfError> {
        (1u32..)
            .zip(self.offsets.iter().skip(1))
            .filter_map(|(id, at)| Some((id, self.type_at(*at as usize)?)))
            .find(|(_, this)| this.kind == kind && self.string(this.name) == name.as_bytes())
            .ok_or_else(|| BtfError::NoType(name.to_owned()))
    }

    /// The type behind names, `const` and the like.
    fn resolve(&self, mut id: u32) -> Option<Type> {
        for _ in 0..DEPTH_MAX {
            let this = self.by_id(id)?;
            match this.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = this.size_or_type
                }
                _ => return Some(this),
            }
        }
        None
    }

    /// A field of a struct; fields of anonymous members count as the struct's own, and `a.b` enters `a`.
    pub(super) fn field(&self, structure: &str, path: &str) -> Result<Field, BtfError> {
        let no_field = || BtfError::NoField(structure.to_owned(), path.to_owned());
        let (mut id, _) = self.find(KIND_STRUCT, structure)?;
        let mut offset = 0;
        for name in path.split('.') {
            let this = self.resolve(id).ok_or_else(no_field)?;
            let field = self.member(&this, name, DEPTH_MAX).ok_or_else(no_field)?;
            offset += field.offset;
            id = field.type_id;
        }
        Ok(Field { offset, type_id: id })
    }

    fn member(&self, of: &Type, name: &str, depth: u32) -> Option<Field> {
        if !matches!(of.kind, KIND_STRUCT | KIND_UNION) || depth == 0 {
            return None;
        }
        for index in 0..of.count {
            let at = of.rest_at + index * 12;
            let (member, type_id, bits) = (self.word(at)?, self.word(at + 4)?, self.word(at + 8)?);
            let offset = if of.has_bit_widths { bits & 0x00ff_ffff } else { bits } / 8;
            let member = self.string(member);
            if member == name.as_bytes() {
                return Some(Field { offset, type_id });
            }
            if member.is_empty()
                && let Some(inner) =
                    self.resolve(type_id).and_then(|inner| self.member(&inner, name, depth - 1))
            {
                return Some(Field { offset: offset + inner.offset, type_id: inner.type_id });
            }
        }
        None
    }

    /// For a field that is an array of structs: the structs' name and size.
    pub(super) fn array_of_structs(&self, field: Field) -> Option<(String, u32)> {
        let array = self.resolve(field.type_id).filter(|this| this.kind == KIND_ARRAY)?;
        let element = self.resolve(self.word(array.rest_at)?).filter(|this| this.kind == KIND_STRUCT)?;
        Some((String::from_utf8_lossy(self.string(element.name)).into_owned(), element.size_or_type))
    }

    /// The value of an enumerator.
    pub(super) fn enumerator(&self, enumeration: &str, name: &str) -> Result<u32, BtfError> {
        let (_, this) = self.find(KIND_ENUM, enumeration)?;
        (0..this.count)
            .map(|index| this.rest_at + index * 8)
            .find(|at| self.word(*at).is_some_and(|of| self.string(of) == name.as_bytes()))
            .and_then(|at| self.word(at + 4))
            .ok_or_else(|| BtfError::NoField(enumeration.to_owned(), name.to_owned()))
    }

    /// For each argument of a tracepoint, whether it is a pointer. The `btf_trace_` prototype's first parameter is
    /// the tracing framework's own and is left out.
    pub(super) fn tracepoint_arguments(&self, tracepoint: &str) -> Result<Vec<bool>, BtfError> {
        let name = format!("btf_trace_{tracepoint}");
        let (id, _) = self.find(KIND_TYPEDEF, &name)?;
        let prototype = self
            .resolve(id)
            .filter(|this| this.kind == KIND_PTR)
            .and_then(|pointer| self.resolve(pointer.size_or_type))
            .filter(|this| this.kind == KIND_FUNC_PROTO)
            .ok_or(BtfError::NoType(name))?;
        Ok((1..prototype.count)
            .map(|index| {
                self.word(prototype.rest_at + index * 8 + 4)
                    .and_then(|id| self.resolve(id))
                    .is_some_and(|this| this.kind == KIND_PTR)
            })
            .collect())
    }
}

/// Bytes of a type's variable part; `None` for a kind that this reader does not know, behind which it cannot go on.
fn rest_bytes(this: &Type) -> Option<usize> {
    Some(match this.kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => this.count * 12,
        KIND_ENUM | KIND_FUNC_PROTO => this.count * 8,
        // Pointers, forward declarations, typedefs, modifiers, functions, floats and tags are the fixed part alone.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn read_u32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the running kernel's BTF, asked for what never moves and for what is not there.
    /// Guarantees: anonymous members are entered, enumerators and tracepoints are read, absence is named.
    #[test]
    fn this_kernel_is_understood() {
        let btf = Btf::of_this_kernel().expect("this kernel has BTF");
        assert_eq!(btf.field("sock_common", "skc_daddr").unwrap().offset, 0);
        assert_eq!(btf.field("sock_common", "skc_rcv_saddr").unwrap().offset, 4);
        assert_eq!(btf.field("socket", "sk").unwrap().offset % 8, 0);
        assert!(btf.field("mm_struct", "rss_stat").is_ok());
        assert_eq!(btf.enumerator("cgroup_subsys_id", "cpuset_cgrp_id"), Ok(0));
        assert_eq!(btf.tracepoint_arguments("sys_exit"), Ok(vec![true, false]));
        assert_eq!(
            btf.field("task_struct", "nonsense").unwrap_err().to_string(),
            "the kernel's task_struct has no field nonsense"
        );
        assert_eq!(btf.field("nonsense", "x").unwrap_err(), BtfError::NoType("nonsense".to_owned()));
    }

    /// Scenario: the kernel's BTF cut at many places; and a piece of it that is whole in itself, with each of its bytes
    /// changed.
    /// Guarantees: damage is an error or harmless, never a panic; without it the piece is understood.
    #[test]
    fn damage_is_refused() {
        let data = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        for length in (0..4096).chain([data.len() / 2, data.len() - 1]) {
            assert!(Btf::parse(data[..length].to_vec()).is_err());
        }
        let small = piece(&Btf::parse(data).unwrap());
        let btf = Btf::parse(small.clone()).expect("the piece is whole");
        let (structure, member) = a_field(&btf).expect("there is a struct among the first types");
        btf.field(&structure, &member).expect("the piece is understood");
        let mut refused = 0;
        for at in 0..small.len() - PIECE_STRINGS_BYTES {
            let mut bytes = small.clone();
            bytes[at] ^= 0xff;
            match Btf::parse(bytes) {
                Err(_) => refused += 1,
                Ok(btf) => {
                    let _found = btf.field(&structure, &member);
                }
            }
        }
        assert!(refused > 100, "kinds and counts decide whether the types can be walked: {refused}");
    }

    const PIECE_TYPES_BYTES: usize = 8_192;
    const PIECE_STRINGS_BYTES: usize = 32_768;

    /// The first types of a kernel, and the first of its strings, under a header that says so.
    fn piece(btf: &Btf) -> Vec<u8> {
        let fits = |at: &&u32| **at as usize <= PIECE_TYPES_BYTES;
        let types_bytes = *btf.offsets.iter().skip(1).take_while(fits).last().unwrap();
        let mut bytes = btf.data[..24].to_vec();
        let strings_bytes = u32::try_from(PIECE_STRINGS_BYTES).unwrap();
        for (at, value) in [(4, 24), (8, 0), (12, types_bytes), (16, types_bytes), (20, strings_bytes)] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes.extend_from_slice(&btf.data[btf.types_at..][..types_bytes as usize]);
        bytes.extend_from_slice(&btf.data[btf.strings_at..][..PIECE_STRINGS_BYTES]);
        bytes
    }

    /// A struct with a name, and a member of it that has one.
    fn a_field(btf: &Btf) -> Option<(String, String)> {
        let text = |at: u32| String::from_utf8_lossy(btf.string(at)).into_owned();
        let types = btf.offsets.iter().skip(1).filter_map(|at| btf.type_at(*at as usize));
        types
            .filter(|this| this.kind == KIND_STRUCT && this.count > 0)
            .map(|this| (text(this.name), text(btf.word(this.rest_at).unwrap_or(0))))
            .find(|(structure, member)| !structure.is_empty() && !member.is_empty())
    }
}
