# A formula for Homebrew on Linux. UNTRIED: its syntax was checked, and no Homebrew has installed it.
#
# For a tap of your own, in its folder `Formula`. OWNER/REPOSITORY stands for where your releases come from, and the zeros for the
# checksums in the release's SHA256SUMS.
class AutohealPa < Formula
  desc "Makes private EKS clusters reachable for kubectl through SSM Session Manager"
  homepage "https://github.com/OWNER/REPOSITORY"
  version "0.1.0"
  license "Apache-2.0"

  depends_on :linux

  on_intel do
    url "https://github.com/OWNER/REPOSITORY/releases/download/v0.1.0/autoheal-pa-0.1.0-x86_64-unknown-linux-musl.tar.gz"
    sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  end
  on_arm do
    url "https://github.com/OWNER/REPOSITORY/releases/download/v0.1.0/autoheal-pa-0.1.0-aarch64-unknown-linux-musl.tar.gz"
    sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  end

  def install
    bin.install "autoheal-pa"
    man1.install Dir["man/**/*.1"]
    generate_completions_from_executable(bin/"autoheal-pa", "completions")
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/autoheal-pa --version")
  end
end
