# A package of Nix from a release. UNTRIED: its syntax was checked, and no Nix has built it.
#
#   pkgs.callPackage ./autoheal-pa.nix {
#     releases = "https://github.com/OWNER/REPOSITORY/releases/download";
#     hashes = { x86_64-linux = "…"; aarch64-linux = "…"; };   # of the release's SHA256SUMS
#   }
{ lib
, stdenvNoCC
, fetchurl
, installShellFiles
, releases
, hashes
, version ? "0.1.0"
}:

let
  inherit (stdenvNoCC.hostPlatform) system;
  targets = {
    x86_64-linux = "x86_64-unknown-linux-musl";
    aarch64-linux = "aarch64-unknown-linux-musl";
  };
  unknown = throw "no release of autoheal-pa is built for ${system}";
  target = targets.${system} or unknown;
in
stdenvNoCC.mkDerivation {
  pname = "autoheal-pa";
  inherit version;

  src = fetchurl {
    url = "${releases}/v${version}/autoheal-pa-${version}-${target}.tar.gz";
    sha256 = hashes.${system} or unknown;
  };

  nativeBuildInputs = [ installShellFiles ];

  # It is static: there is nothing to patch.
  dontBuild = true;
  dontFixup = true;

  installPhase = ''
    runHook preInstall
    install -D -m 755 autoheal-pa "$out/bin/autoheal-pa"
    find man -name '*.1' -exec install -D -m 644 -t "$out/share/man/man1" {} +
    for shell in bash zsh fish; do
      ./autoheal-pa completions "$shell" > "completions.$shell"
      installShellCompletion --cmd autoheal-pa --"$shell" "completions.$shell"
    done
    runHook postInstall
  '';

  meta = {
    description = "Makes private EKS clusters reachable for kubectl through SSM Session Manager";
    license = lib.licenses.asl20;
    mainProgram = "autoheal-pa";
    platforms = builtins.attrNames targets;
    sourceProvenance = [ lib.sourceTypes.binaryNativeCode ];
  };
}
