{{/*
What the schema cannot say: values that contradict each other, and kiam's values that mean nothing
here or something else. Each sentence says what to change.
*/}}
{{- define "kiam.checks" -}}
{{- $a := .Values.agent -}}
{{- $s := .Values.server -}}
{{- if not .Values.certManager.enabled -}}
  {{- if and $s.enabled (not $s.tlsSecret) -}}
    {{- fail "certManager.enabled is false: name a Secret with the server's certificate, key and CA in server.tlsSecret" -}}
  {{- end -}}
  {{- if and $a.enabled (not $a.tlsSecret) (not $a.tlsHostPath) -}}
    {{- fail "certManager.enabled is false: name a Secret with the CA (and, unless agentAuth is token, certificate and key) in agent.tlsSecret" -}}
  {{- end -}}
{{- end -}}
{{- if and (eq .Values.agentAuth "certificate") $a.enabled (not $a.tlsHostPath) -}}
  {{- fail "agentAuth: certificate needs one certificate per node; a Secret is the same on all of them. Set agent.tlsHostPath, or agentAuth: token" -}}
{{- end -}}
{{- if and $a.tlsHostPath (ne .Values.agentAuth "certificate") -}}
  {{- fail "agent.tlsHostPath is for agentAuth: certificate" -}}
{{- end -}}
{{- if and $s.enabled $s.legacyAgents (not $s.tlsSecret) (not .Values.certManager.issuerRef) -}}
  {{- fail "server.legacyAgents: kiam's agents have certificates of kiam's CA and take a server's of no other, so the chart's own CA will not do; name the Secret with kiam's server certificate and CA in server.tlsSecret, or the issuer that has kiam's CA in certManager.issuerRef" -}}
{{- end -}}
{{- if and $s.sessionTags (not .Values.clusterName) -}}
  {{- fail "server.sessionTags needs clusterName: two of the tags name the cluster" -}}
{{- end -}}
{{- if and $s.useHostNetwork (lt (int $s.service.port) 1024) -}}
  {{- fail "server.useHostNetwork with server.service.port under 1024: the server is not root; use a port from 1024 on (docs/migrating-from-kiam.md has the way from kiam's 443)" -}}
{{- end -}}
{{- range $of := list $a $s -}}
  {{- if lt (int (include "kiam.adminPort" $of)) 1024 -}}
    {{- fail (printf "%s.prometheus.port under 1024: the program may not open such a port; use one from 1024 on" $of.name) -}}
  {{- end -}}
{{- end -}}
{{- include "kiam.portsDiffer" . -}}
{{- if and $s.enabled (not $s.useHostNetwork) (include "kiam.onLoopback" $s.prometheus.host) -}}
  {{- fail "server.prometheus.host is loopback: the kubelet would probe the node's, where the agent answers. Only a server in the node's network (server.useHostNetwork) can have that; narrow the port with networkPolicy" -}}
{{- end -}}
{{- if and $a.seccomp.install (ne $a.seccomp.type "Localhost") -}}
  {{- fail "agent.seccomp.install writes a profile that only agent.seccomp.type: Localhost uses" -}}
{{- end -}}
{{- if and (eq $a.driver "io_uring") (eq $a.seccomp.type "RuntimeDefault") -}}
  {{- fail "agent.driver: io_uring fails under most runtimes' default seccomp profile; set agent.seccomp.type: Localhost (and agent.seccomp.install), or agent.driver: auto" -}}
{{- end -}}
{{- if and $a.host.reconcile (eq (include "kiam.intercept" .) "none") -}}
  {{- fail "agent.host.reconcile has nothing to put back with agent.host.intercept: none" -}}
{{- end -}}
{{- $type := include "kiam.strategyType" $a.updateStrategy -}}
{{- if not (has $type (list "RollingUpdate" "OnDelete")) -}}
  {{- fail (printf "agent.updateStrategy: %s is no strategy of a DaemonSet; RollingUpdate or OnDelete" $type) -}}
{{- end -}}
{{- $rolling := include "kiam.agent.rollingUpdate" . | fromYaml -}}
{{- $surges := not (include "kiam.isZero" $rolling.maxSurge) -}}
{{- if and (eq $type "RollingUpdate") (eq $surges (not (include "kiam.isZero" $rolling.maxUnavailable))) -}}
  {{- fail (printf "agent.updateStrategy.rollingUpdate: maxSurge %v and maxUnavailable %v; a DaemonSet takes exactly one that is not 0" $rolling.maxSurge $rolling.maxUnavailable) -}}
{{- end -}}
{{- $serverType := include "kiam.strategyType" $s.updateStrategy -}}
{{- if not (has $serverType (list "RollingUpdate" "Recreate")) -}}
  {{- fail (printf "server.updateStrategy: %s is no strategy of a Deployment, which servers are here; RollingUpdate or Recreate" $serverType) -}}
{{- end -}}
{{- $rolling = include "kiam.server.rollingUpdate" . | fromYaml -}}
{{- if and (eq $serverType "RollingUpdate") (include "kiam.isZero" $rolling.maxSurge) (include "kiam.isZero" $rolling.maxUnavailable) -}}
  {{- fail "server.updateStrategy.rollingUpdate: with maxSurge 0 and maxUnavailable 0 no server could be replaced; give one of them" -}}
{{- end -}}
{{- if and $a.enabled (not $a.handoverDir) $surges (eq $type "RollingUpdate") -}}
  {{- fail "agent.handoverDir is empty: then an agent cannot start beside its predecessor, whose port it needs; set agent.updateStrategy.rollingUpdate to maxSurge 0 and maxUnavailable 1" -}}
{{- end -}}
{{- if and $s.dryRun $s.enabled $a.enabled -}}
  {{- fail "server.dryRun serves no agent, so none would become ready; set agent.enabled: false beside it" -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled $s.useHostNetwork -}}
  {{- fail "networkPolicy does not reach a server in the node's network (server.useHostNetwork); leave it out, and narrow the admin port with server.prometheus.host" -}}
{{- end -}}
{{- if and $s.startupTaint $a.enabled (ne (include "kiam.intercept" .) "none") (or (not $a.host.probe) (not $a.handoverDir)) -}}
  {{- fail "server.startupTaint goes when interception has been verified, and before there are pods only the init container's probe can do that, which tells the agent in agent.handoverDir: set agent.host.probe: true and agent.handoverDir" -}}
{{- end -}}
{{- $families := $a.host.ipFamilies -}}
{{- $doorFamily := ternary "IPv6" "IPv4" (contains "[" $a.containerCredentials.address) -}}
{{- if and $a.containerCredentials.enabled $a.containerCredentials.redirect (ne $doorFamily (first $families)) -}}
  {{- fail (printf "agent.containerCredentials.address is an %s address, and redirect leads to the node's first, an %s one (agent.host.ipFamilies); give an address of that family, or set redirect to false and give the node the address" $doorFamily (first $families)) -}}
{{- end -}}
{{- if and $a.enabled (include "kiam.dualStack" .) (semverCompare "<1.30-0" .Capabilities.KubeVersion.Version) -}}
  {{- fail (printf "agent.host.ipFamilies: pods learn both addresses of their node from Kubernetes 1.30 on (status.hostIPs), this is %s" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and $a.prometheus.servicemonitor.enabled $a.prometheus.podmonitor.enabled -}}
  {{- fail "agent.prometheus: servicemonitor and podmonitor would scrape the same agents twice; enable one" -}}
{{- end -}}
{{- if and $s.prometheus.servicemonitor.enabled $s.prometheus.podmonitor.enabled -}}
  {{- fail "server.prometheus: servicemonitor and podmonitor would scrape the same servers twice; enable one" -}}
{{- end -}}
{{- range $of := list $a $s -}}
  {{- if contains "uswitch/kiam" $of.image.repository -}}
    {{- fail (printf "%s.image.repository is kiam's image (%s), which does not have this program; set image.repository" $of.name $of.image.repository) -}}
  {{- end -}}
{{- end -}}
{{- range $message := (include "kiam.refused" . | fromYamlArray) -}}
  {{- fail $message -}}
{{- end -}}
{{- end -}}

{{/* No two programs, and no two doors of one, have the same port where both are the node's. */}}
{{- define "kiam.portsDiffer" -}}
{{- $a := .Values.agent -}}
{{- $s := .Values.server -}}
{{- $agent := list -}}
{{- if $a.enabled -}}
  {{- $agent = list (list "agent.host.port" $a.host.port) (list "agent.prometheus.port" (include "kiam.adminPort" $a)) -}}
  {{- if $a.containerCredentials.enabled -}}
    {{- $door := ternary (list "agent.containerCredentials.port" $a.containerCredentials.port) (list "agent.containerCredentials.address" (regexFind "[0-9]+$" $a.containerCredentials.address)) $a.containerCredentials.redirect -}}
    {{- $agent = append $agent $door -}}
  {{- end -}}
{{- end -}}
{{- $server := list -}}
{{- if $s.enabled -}}
  {{- $server = list (list "server.service.port" $s.service.port) (list "server.prometheus.port" (include "kiam.adminPort" $s)) -}}
{{- end -}}
{{- $networks := ternary (list (concat $agent $server)) (list $agent $server) $s.useHostNetwork -}}
{{- range $network := $networks -}}
  {{- $taken := dict -}}
  {{- range $port := $network -}}
    {{- $number := last $port | int | toString -}}
    {{- with get $taken $number -}}
      {{- fail (printf "%s and %s must differ: both are port %s of the same network" . (first $port) $number) -}}
    {{- end -}}
    {{- $_ := set $taken $number (first $port) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* `agent.host.iptables` is kiam's name for what is now one of three words. */}}
{{- define "kiam.intercept" -}}
{{- if .Values.agent.host.iptables -}}iptables{{- else -}}{{ .Values.agent.host.intercept }}{{- end -}}
{{- end -}}

{{/* kiam's values that cannot be honoured: better no upgrade than a silent difference. */}}
{{- define "kiam.refused" -}}
{{- $a := .Values.agent -}}
{{- $s := .Values.server -}}
{{- if dig "host" "iptablesRemoveOnShutdown" false $a }}
- "agent.host.iptablesRemoveOnShutdown: true would give pods the node's role whenever an agent stops; rules are removed with `kiam-agent intercept remove` only. Take the value out"
{{- end }}
{{- if $a.tlsFiles }}
- "agent.tlsFiles: keys do not belong in values; make a Secret and name it in agent.tlsSecret, or use cert-manager"
{{- end }}
{{- if $s.tlsFiles }}
- "server.tlsFiles: keys do not belong in values; make a Secret and name it in server.tlsSecret, or use cert-manager"
{{- end }}
{{- if $a.whiteListRouteRegexp }}
- "agent.whiteListRouteRegexp is now agent.allowRouteRegexp"
{{- end }}
{{- if eq (toString (dig "deployment" "enabled" true $s)) "false" }}
- "server.deployment.enabled: false meant a DaemonSet; servers are a Deployment here. Take the value out and set server.deployment.replicas"
{{- end }}
{{- if and (dig "service" "targetPort" 0 $s) (ne (int (dig "service" "targetPort" 0 $s)) (int $s.service.port)) }}
- "server.service.targetPort differs from server.service.port, but the Service is headless: agents connect to the servers' own port. Take targetPort out"
{{- end }}
{{- if (.Values.psp | default dict).create }}
- "psp.create: Kubernetes has no PodSecurityPolicy since 1.25. Take the value out"
{{- end }}
{{- if kindIs "string" .Values.imagePullSecrets }}
- "imagePullSecrets is a list here: [{name: ...}]"
{{- end }}
{{- end -}}

{{/* kiam's values that have no meaning here and do no harm: named in the notes. */}}
{{- define "kiam.ignored" -}}
{{- $a := .Values.agent -}}
{{- $s := .Values.server -}}
{{- if hasKey $a "deepLivenessProbe" }}
- agent.deepLivenessProbe (liveness never depends on a server)
{{- end }}
{{- if hasKey $a.prometheus "syncInterval" }}
- agent.prometheus.syncInterval (metrics are added up when scraped)
{{- end }}
{{- if hasKey $s.prometheus "syncInterval" }}
- server.prometheus.syncInterval (metrics are added up when scraped)
{{- end }}
{{- if hasKey $a.keepaliveParams "permitWithoutStream" }}
- agent.keepaliveParams.permitWithoutStream (there is always a stream)
{{- end }}
{{- if hasKey $a.host "iptablesRemoveOnShutdown" }}
- agent.host.iptablesRemoveOnShutdown (rules stay, as with false)
{{- end }}
{{- if hasKey $s "sslCertHostPath" }}
- server.sslCertHostPath (the image has its own root certificates)
{{- end }}
{{- if hasKey $s "probes" }}
- server.probes (probes are HTTP on the admin port)
{{- end }}
{{- if hasKey $s "cache" }}
- server.cache.syncInterval (the server watches, it does not resync)
{{- end }}
{{- if hasKey $s.deployment "enabled" }}
- server.deployment.enabled (servers are always a Deployment)
{{- end }}
{{- if hasKey $s.service "targetPort" }}
- server.service.targetPort (the same as server.service.port)
{{- end }}
{{- if hasKey .Values "psp" }}
- psp.create (Kubernetes has no PodSecurityPolicy any more)
{{- end }}
{{- if hasKey .Values "extraArgs" }}
- extraArgs at the top (kiam's chart did not use it either; agent.extraArgs and server.extraArgs do)
{{- end }}
{{- end -}}
