//! What the series ran on, as far as the kernel says.

use serde::{Deserialize, Serialize};

/// A machine and what was built for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    /// Cores that this process could use.
    pub cores: usize,
    /// What the processor calls itself.
    pub processor: String,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// Whether it is a guest of a hypervisor.
    pub virtualized: bool,
    /// The kernel's release.
    pub kernel: String,
    /// Whether the programs were built with optimizations.
    pub optimized: bool,
}

impl Machine {
    /// This one.
    pub(crate) fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::parse(
            cores,
            &read("/proc/cpuinfo"),
            &read("/proc/meminfo"),
            &read("/proc/sys/kernel/osrelease"),
        )
    }

    fn parse(cores: usize, cpuinfo: &str, meminfo: &str, kernel: &str) -> Self {
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or_else(String::new, |(_name, value)| value.trim().to_owned())
        };
        let memory = value(meminfo, "MemTotal");
        Self {
            cores,
            processor: value(cpuinfo, "model name"),
            memory_kib: memory
                .split(' ')
                .next()
                .and_then(|kib| kib.parse().ok())
                .unwrap_or(0),
            virtualized: value(cpuinfo, "flags")
                .split(' ')
                .any(|flag| flag == "hypervisor"),
            kernel: kernel.trim().to_owned(),
            optimized: !cfg!(debug_assertions),
        }
    }

    /// In words.
    pub(crate) fn words(&self) -> String {
        let Self {
            cores,
            processor,
            memory_kib,
            virtualized,
            kernel,
            optimized,
        } = self;
        // Some guests are not told what they run on.
        let processor = match processor.as_str() {
            "" | "unknown" => String::new(),
            processor => format!(" of {processor}"),
        };
        let release = kernel.split('-').next().unwrap_or_default();
        format!(
            "{cores} {}cores{processor}, {} GiB of memory, Linux {release}{}",
            if *virtualized { "virtual " } else { "" },
            memory_kib.div_ceil(1 << 20),
            if *optimized {
                ""
            } else {
                "; **a build without optimizations, so nothing here is worth comparing**"
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_told_in_words() {
        let machine = Machine {
            optimized: true,
            ..Machine::parse(
                2,
                "processor\t: 0\nmodel name\t: Fast CPU\nflags\t\t: fpu hypervisor\n",
                "MemTotal:       16000000 kB\nMemFree: 1 kB\n",
                "6.18.5-cloud\n",
            )
        };
        assert_eq!(
            machine.words(),
            "2 virtual cores of Fast CPU, 16 GiB of memory, Linux 6.18.5"
        );
        let unknown = Machine {
            optimized: true,
            ..Machine::parse(1, "", "", "")
        };
        assert_eq!(unknown.words(), "1 cores, 0 GiB of memory, Linux ");
    }
}
