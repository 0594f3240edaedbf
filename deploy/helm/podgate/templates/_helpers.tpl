{{/* The name of every object: that of the release. */}}
{{- define "podgate.name" -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}

{{- define "podgate.selector" -}}
app.kubernetes.io/name: podgate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "podgate.labels" -}}
{{ include "podgate.selector" . }}
app.kubernetes.io/component: gateway
app.kubernetes.io/part-of: podgate
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* The port of an address such as 0.0.0.0:8080. */}}
{{- define "podgate.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}

{{/* Who shares the account: one pod alone is replaced, not joined, by a new one. */}}
{{- define "podgate.sharers" -}}
{{- if eq (int .Values.pods) 1 }}1{{ else }}{{ add .Values.pods 1 }}{{ end -}}
{{- end -}}

{{- define "podgate.config" -}}
{{- $sharers := dict "replicas" (include "podgate.sharers" . | int) -}}
{{- toYaml (merge (deepCopy .Values.config) $sharers) -}}
{{- end -}}
